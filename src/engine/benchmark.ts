/** Times ops by themselves, at the shapes of real layers that their tests mark `bench`. */
import type { Engine } from './device';
import { Graph } from './graph';
import type { InputFill, OpCase, OpTests } from './op';
import { profile, type Profile } from './profiler';
import { compile, type Program } from './program';
import { dtypeBytes, numel, type DType, type Shape } from './shape';

export interface KernelTiming {
  readonly op: string;
  readonly case: string;
  /** Kernel variant that was forced, or `default` for the op's own choice. */
  readonly variant: string;
  readonly dtype: 'f32' | 'f16';
  readonly dispatches: number;
  readonly milliseconds: number;
  readonly flops: number;
  readonly bytes: number;
}

export interface BenchmarkOptions {
  /** Also every variant that the op lists, each forced. */
  readonly variants?: boolean;
  readonly runs?: number;
}

/** Data of the asked kind whose values do not matter beyond being in range and of both signs: a linear congruential walk. */
export function randomFill(dtype: DType, shape: Shape, how?: InputFill): Float32Array | Int32Array | Uint32Array | Uint16Array {
  const n = numel(shape);
  const limit = typeof how === 'object' && 'int' in how ? how.int : 2;
  let state = 12345;
  const next = () => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) / 2 ** 32;
  if (dtype === 'i32' || dtype === 'u32') {
    const values = typeof how === 'object' && 'values' in how ? how.values : undefined;
    const integers = Array.from({ length: n }, (_, i) => values?.[i % values.length] ?? Math.floor(next() * limit));
    return dtype === 'i32' ? Int32Array.from(integers) : Uint32Array.from(integers);
  }
  // 0x3800 to 0x3bff are the halves from 0.5 up to 1; bit 15 is the sign.
  if (dtype === 'f16') return Uint16Array.from({ length: n }, () => (next() < 0.5 ? 0x8000 : 0) + 0x3800 + Math.floor(next() * 0x400));
  return Float32Array.from({ length: n }, () => (next() < 0.5 ? -1 : 1) * (0.5 + next() / 2));
}

/** One case as a program of its own, inputs written. */
async function programOf(engine: Engine, { op }: OpTests<never>, c: OpCase<never>, dtype: 'f32' | 'f16', variant: string | undefined): Promise<Program> {
  const graph = new Graph();
  const leaves = c.inputs.map((input, i) => graph.input(`input${i}`, input.shape, input.dtype ?? dtype));
  const outputs = graph.add(op, leaves, c.attrs);
  // An op without outputs, or one that mutates its inputs, is kept for its effect.
  const program = await compile(engine, graph, { outputs, ...(variant !== undefined && { variants: { [op.name]: variant } }), label: `${op.name} ${c.name}` });
  leaves.forEach((t, i) => program.write(t, randomFill(t.dtype, t.shape, c.inputs[i]!.fill)));
  return program;
}

/** Sum over the dispatches of one op: the median replay's, or wall time where the adapter has no timestamps. */
const milliseconds = (p: Profile): number => p.total / 1e6;

/** Times every case marked `bench`, in turn; `onResult` sees each as it is done. */
export async function benchmarkKernels(engine: Engine, suites: readonly OpTests<never>[], { variants = false, runs = 5 }: BenchmarkOptions, onResult: (timing: KernelTiming) => void): Promise<void> {
  const limit = Math.min(engine.profile.limits.maxBufferSize, engine.profile.limits.maxStorageBufferBindingSize);
  for (const suite of suites) {
    for (const c of suite.cases.filter((each) => each.bench)) {
      for (const dtype of engine.profile.f16 ? (['f32', 'f16'] as const) : (['f32'] as const)) {
        if (c.inputs.some((input) => numel(input.shape) * dtypeBytes[input.dtype ?? dtype] > limit)) continue;
        for (const variant of [undefined, ...(variants ? (suite.op.variants ?? []) : [])]) {
          const program = await programOf(engine, suite, c, dtype, variant);
          try {
            const measured = await profile(program, { runs });
            const sum = (key: 'flops' | 'bytes') => measured.steps.reduce((n, s) => n + s[key], 0);
            onResult({ op: suite.op.name, case: c.name, variant: variant ?? 'default', dtype, dispatches: measured.steps.length, milliseconds: milliseconds(measured), flops: sum('flops'), bytes: sum('bytes') });
          } finally {
            program.destroy();
          }
        }
      }
    }
  }
}
