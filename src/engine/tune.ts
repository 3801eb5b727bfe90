/**
 * Which kernel variant is fastest on this adapter, measured: for every op and shape of a graph that has several, each is timed by itself, checked
 * against the general one, and the winner remembered in {@link Engine.tuning}, which programs compiled afterwards follow. Without tuning the
 * ops choose by the adapter's class and a cost model (`lower` of each op).
 */
import { randomFill } from './benchmark';
import type { Engine } from './device';
import { BruitError } from './errors';
import { Graph, type Node, type Tensor } from './graph';
import type { OpDef } from './op';
import { cast } from './ops/pointwise';
import { profile } from './profiler';
import { compile, type Program } from './program';
import { tuningKey } from './tuning_key';

/** Winners by op, shapes, storage and attributes, for one adapter and one version of the kernels. */
export interface TuningTable {
  readonly adapter: string;
  readonly version: string;
  readonly entries: Readonly<Record<string, string>>;
}

export interface TunedOp {
  readonly key: string;
  readonly op: string;
  /** Milliseconds of one call by variant; `default` is what the op chooses by itself. */
  readonly milliseconds: Readonly<Record<string, number>>;
  /** The variant to use, or `default` where none is faster by more than the measurement's noise. */
  readonly winner: string;
  /** Variants that disagreed with the general one and are left out. */
  readonly wrong: readonly string[];
  /** Variants that this adapter or its driver refused. */
  readonly failed: readonly string[];
}

export interface TuneOptions {
  readonly signal?: AbortSignal;
  /** Called after each op and shape. */
  readonly onProgress?: (done: number, total: number, tuned: TunedOp) => void;
}

/** Timed rounds over all candidates in turn, so that drifting clocks hit them alike. */
const rounds = 4;
/** Milliseconds that one timed submission should take at least. */
const enough = 10;
/** A variant must be faster than the default by this factor to replace it. */
const margin = 1.04;

/** Times the variants of every op of `graph`, once for each shape, and enters the winners into `engine.tuning`. */
export async function tune(engine: Engine, graph: Graph, { signal, onProgress }: TuneOptions = {}): Promise<TunedOp[]> {
  const nodes = new Map<string, Node>();
  for (const node of graph.nodes) if ((node.op.variants?.length ?? 0) > 1 && !node.op.mutates) nodes.set(tuningKey(node), node);
  const results: TunedOp[] = [];
  for (const [key, node] of nodes) {
    if (signal?.aborted) throw new BruitError('aborted', 'tuning was aborted');
    const tuned = await tuneNode(engine, key, node);
    if (tuned.winner === 'default') engine.tuning.delete(key);
    else engine.tuning.set(key, tuned.winner);
    results.push(tuned);
    onProgress?.(results.length, nodes.size, tuned);
  }
  return results;
}

async function tuneNode(engine: Engine, key: string, node: Node): Promise<TunedOp> {
  const [general, ...others] = node.op.variants!;
  const previous = engine.tuning.get(key);
  engine.tuning.delete(key);
  const candidates = new Map<string, Program>();
  const wrong: string[] = [];
  const failed: string[] = [];
  try {
    let expected: Float32Array[] | undefined;
    const seen = new Set<string>();
    for (const variant of [general!, 'default', ...others]) {
      let program: Program | undefined;
      try {
        const made = await alone(engine, node, variant === 'default' ? undefined : variant);
        program = made.program;
        // Variants fall back to others where the adapter or the shape does not suit them.
        const what = JSON.stringify(program.steps.map((s) => [s.info.text, s.info.entry, s.workgroups]));
        if (seen.has(what)) {
          if (variant !== 'default') continue;
          // The general variant is the default: one of the two is enough.
          candidates.get(general!)?.destroy();
          candidates.delete(general!);
        }
        seen.add(what);
        const values = await results(made);
        expected ??= values;
        if (values.every((v, i) => agrees(v, expected![i]!, made.tolerances[i]!))) {
          candidates.set(variant, program);
          program = undefined;
        } else wrong.push(variant);
      } catch (e) {
        // What one variant cannot do (a limit, a shader that a driver refuses) is no reason to lose the others; a lost device is.
        if (!(e instanceof BruitError) || e.code === 'device') throw e;
        failed.push(variant);
      } finally {
        program?.destroy();
      }
    }
    const times = await race(engine, candidates);
    const [winner, time] = Object.entries(times).reduce((best, each) => (each[1] < best[1] ? each : best), ['default', Infinity] as [string, number]);
    return { key, op: node.op.name, milliseconds: times, winner: time * margin < (times.default ?? Infinity) ? winner : 'default', wrong, failed };
  } catch (e) {
    if (previous !== undefined) engine.tuning.set(key, previous);
    throw e;
  } finally {
    for (const program of candidates.values()) program.destroy();
  }
}

interface Alone {
  readonly program: Program;
  readonly outputs: readonly Tensor[];
  /** By how much of the largest value each may differ from the general variant's: half precision rounds what it stores. */
  readonly tolerances: readonly number[];
}

/** The node as a program of its own, on data of the right shapes. */
async function alone(engine: Engine, { op, inputs, attrs }: Node, variant: string | undefined): Promise<Alone> {
  const graph = new Graph();
  const leaves = inputs.map((t, i) => graph.input(`input${i}`, t.shape, t.dtype));
  const made = graph.add(op as OpDef<object>, leaves, attrs);
  // Read as f32; the conversion costs every variant the same.
  const outputs = made.map((t) => (t.dtype === 'f16' ? cast(t, 'f32') : t));
  const program = await compile(engine, graph, { outputs: [...made, ...outputs], label: `tuning ${op.name}`, ...(variant !== undefined && { variants: { [op.name]: variant } }) });
  leaves.forEach((t) => program.write(t, randomFill(t.dtype, t.shape)));
  return { program, outputs, tolerances: made.map((t) => (t.dtype === 'f32' ? 1e-4 : t.dtype === 'f16' ? 4e-3 : 0)) };
}

/** What a program computes, as numbers. */
async function results({ program, outputs }: Alone): Promise<Float32Array[]> {
  program.run();
  const values: Float32Array[] = [];
  for (const t of outputs) {
    const raw = await program.readRaw(t);
    values.push(t.dtype === 'f32' ? new Float32Array(raw) : Float32Array.from(t.dtype === 'i32' ? new Int32Array(raw) : new Uint32Array(raw)));
  }
  return values;
}

function agrees(a: Float32Array, b: Float32Array, tolerance: number): boolean {
  let largest = 0;
  let difference = 0;
  for (let i = 0; i < a.length; i++) {
    largest = Math.max(largest, Math.abs(b[i]!));
    difference = Math.max(difference, Math.abs(a[i]! - b[i]!));
    if (!Number.isFinite(a[i]!)) return false;
  }
  return difference <= tolerance * largest;
}

/** Least milliseconds of one run of each: GPU time where the adapter has timestamps, else wall time of many runs. */
async function race(engine: Engine, programs: ReadonlyMap<string, Program>): Promise<Record<string, number>> {
  const best: Record<string, number> = {};
  const repeats = new Map<string, number>();
  for (let round = 0; round <= rounds; round++) {
    for (const [name, program] of programs) {
      const times = repeats.get(name) ?? 1;
      const start = performance.now();
      let each: number;
      if (engine.profile.timestamps && round > 0) each = (await profile(program, { runs: Math.min(times, 10) })).total / 1e6;
      else {
        program.run(times);
        await program.done();
        each = (performance.now() - start) / times;
      }
      if (round === 0) repeats.set(name, Math.max(1, Math.min(200, Math.ceil(enough / each))));
      else best[name] = Math.min(best[name] ?? Infinity, each);
    }
  }
  return best;
}

/** What to store of an engine's tuning. `version` is that of the package: other kernels, other winners. */
export function exportTuning(engine: Engine, version: string): TuningTable {
  return { adapter: engine.profile.name, version, entries: Object.fromEntries([...engine.tuning].sort(([a], [b]) => (a < b ? -1 : 1))) };
}

/** Takes over a stored table if it is this adapter's and this version's; tells whether. A malformed one is not. */
export function importTuning(engine: Engine, table: unknown, version: string): boolean {
  const t = table as Partial<TuningTable> | null;
  if (typeof t !== 'object' || t === null || t.adapter !== engine.profile.name || t.version !== version || typeof t.entries !== 'object' || t.entries === null) return false;
  for (const [key, variant] of Object.entries(t.entries)) if (typeof variant === 'string') engine.tuning.set(key, variant);
  return true;
}
