/** The Bench tab's worker: engines take turns at the same work on devices of their own, so that none disturbs the tabs' engine. */
import { expose } from 'comlink';
import { findAdapter, openDevice } from './adapter';
import { unetWeightValues, workloads, type WeightSpec } from '../../bench/workloads.mjs';

export interface RowInfo {
  readonly id: string;
  readonly name: string;
  readonly kind: string;
  readonly flops: number;
  readonly bytes: number | undefined;
}

export interface EngineEntry {
  readonly name: string;
  /** Relative to the page. */
  readonly module: string;
  readonly version: string;
}

export interface Measured {
  readonly row: string;
  readonly engine: string;
  /** Milliseconds of a run, median; absent where the engine cannot do the row. */
  readonly ms?: number;
  readonly rounds?: number;
  /** Milliseconds from the inputs to the first result, with compiling. */
  readonly firstMs?: number;
  /** Largest difference to bruit's numbers, by their largest. */
  readonly difference?: number;
  readonly problem?: string;
}

interface Handle {
  run(k: number): Promise<void>;
  read(): Promise<ArrayLike<number>>;
  destroy?(): void;
}

interface Engines {
  readonly [kind: string]: unknown;
  measurePeak?(): Promise<{ f32: number; bandwidth: number }>;
}

type Setup = (options: { requestDevice: (o?: { requiredFeatures?: GPUFeatureName[] }) => Promise<GPUDevice>; opts?: object }) => Promise<Engines>;

const median = (values: readonly number[]): number => [...values].sort((a, b) => a - b)[values.length >> 1]!;

async function requestDevice({ requiredFeatures = [] }: { requiredFeatures?: GPUFeatureName[] } = {}, onLost: () => void): Promise<GPUDevice> {
  const adapter = await findAdapter();
  const requiredLimits: Record<string, number> = {};
  for (const name in adapter.limits) {
    const limit = (adapter.limits as unknown as Record<string, unknown>)[name];
    if (typeof limit === 'number') requiredLimits[name] = limit;
  }
  const device = await openDevice(adapter.requestDevice({ requiredLimits, requiredFeatures: requiredFeatures.filter((f) => adapter.features.has(f)) }));
  void device.lost.then(onLost);
  return device;
}

export class BenchWorker {
  private readonly opened = new Map<string, Promise<Engines>>();
  private weights: Promise<WeightSpec[]> | undefined;
  private stopped = false;

  rows(): RowInfo[] {
    return workloads.map(({ id, name, kind, flops, bytes }) => ({ id, name, kind, flops, bytes }));
  }

  async engines(): Promise<EngineEntry[]> {
    return (await (await fetch('bench/engines.json')).json()) as EngineEntry[];
  }

  /** Peak rates of the adapter, measured by bruit's kernels: flop/s and bytes/s. */
  async peak(ours: EngineEntry): Promise<{ f32: number; bandwidth: number }> {
    return (await this.open(ours)).measurePeak!();
  }

  /** Answers, unless this worker hangs. */
  ping(): void {}

  stop(): void {
    this.stopped = true;
  }

  /** Runs rows one after the other, the engines of a row in turns for about `seconds` each. The first engine's numbers are what others are compared with. */
  async run(ids: readonly string[], entries: readonly EngineEntry[], seconds: number, on: (m: Measured) => void): Promise<void> {
    this.stopped = false;
    for (const id of ids) {
      const work = workloads.find((w) => w.id === id)!;
      const inputs = work.inputs();
      const weights = work.kind === 'unet' || work.kind === 'train' ? unetWeightValues(await this.unetWeights(entries[0]!)) : undefined;
      const racers: { entry: EngineEntry; handle: Handle; times: number[]; firstMs: number; difference: number }[] = [];
      let expected: ArrayLike<number> | undefined;
      for (const entry of entries) {
        if (this.stopped) return;
        try {
          const engine = await this.open(entry);
          const prepare = engine[work.kind] as ((w: object) => Promise<Handle | undefined>) | undefined;
          const start = performance.now();
          const handle = await prepare?.({ ...work, inputs, ...(weights && { weights }) });
          if (!handle) {
            on({ row: id, engine: entry.name });
            continue;
          }
          await handle.run(1);
          const values = await handle.read();
          const firstMs = performance.now() - start;
          expected ??= values;
          racers.push({ entry, handle, times: [], firstMs, difference: difference(values, expected) });
        } catch (e) {
          on({ row: id, engine: entry.name, problem: (e as Error).message });
        }
      }
      try {
        const end = performance.now() + 1000 * seconds * racers.length;
        while (!this.stopped && racers.some((r) => r.times.length < 3 || performance.now() < end)) {
          for (const r of racers) {
            // As many runs at once as take some milliseconds, so that the clock's grain does not matter.
            const k = Math.max(1, Math.min(256, Math.round(10 / (median(r.times.length ? r.times : [10])))));
            const start = performance.now();
            await r.handle.run(k);
            r.times.push((performance.now() - start) / k);
          }
          if (racers.length === 0 || Math.min(...racers.map((r) => r.times.length)) > 200) break;
        }
        for (const { entry, times, firstMs, difference: d } of racers) if (times.length) on({ row: id, engine: entry.name, ms: median(times), rounds: times.length, firstMs, difference: d });
      } finally {
        for (const { handle } of racers) handle.destroy?.();
      }
      if (this.stopped) return;
    }
  }

  private open(entry: EngineEntry): Promise<Engines> {
    let known = this.opened.get(entry.name);
    if (!known) {
      known = (async () => {
        const { setup } = (await import(new URL(entry.module, self.location.href).href)) as { setup: Setup };
        // The next measurement begins on a new device.
        return setup({ requestDevice: (options) => requestDevice(options, () => this.opened.delete(entry.name)), opts: {} });
      })();
      known.catch(() => this.opened.delete(entry.name));
      this.opened.set(entry.name, known);
    }
    return known;
  }

  private unetWeights(ours: EngineEntry): Promise<WeightSpec[]> {
    this.weights ??= import(new URL(ours.module, self.location.href).href).then((m: { unetWeights: () => WeightSpec[] }) => m.unetWeights());
    return this.weights;
  }
}

function difference(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  if (actual.length !== expected.length) return NaN;
  let [worst, largest] = [0, 0];
  for (let i = 0; i < expected.length; i++) {
    const d = Math.abs(actual[i]! - expected[i]!);
    if (!(d <= worst)) worst = d; // a NaN too
    largest = Math.max(largest, Math.abs(expected[i]!));
  }
  return worst / (largest || 1);
}

expose(new BenchWorker());
