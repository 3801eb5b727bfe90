/**
 * Random numbers made on the GPU, the same stream as the host's (src/engine/rng.ts): a pure function of (seed, sample, step, stream, element).
 * Sample i of a batch gets the numbers that it gets alone or in another batch, and dropout's mask is made again in the backward pass, not kept.
 */
import shader from '../../../shaders/random.wgsl';
import { check } from '../errors';
import type { Graph, Tensor, TensorSpec } from '../graph';
import { defineOp, opTests, type Bindable, type LowerContext, type OpCase, type OpTests, type RefTensor } from '../op';
import { vectorType } from '../pointwise_codegen';
import { dropoutLimit, dropoutMask, integers, normals, uniforms, type RngPlace } from '../rng';
import { numel, showShape, type Shape } from '../shape';

/** Where the numbers come from: the key and three of the four counter words. */
export interface RandomSource {
  /** u32 [2], low and high word (`seedKey`). */
  readonly seed: Tensor;
  /** u32 [N]: for each row of the batch, the number of its sample in the whole run. */
  readonly samples: Tensor;
  /** u32 [1]: diffusion step or training step. */
  readonly step: Tensor;
  /** What for: one of `RngStream`, or a number of the caller's that no other use has. */
  readonly stream: number;
}

interface RandomAttrs {
  readonly shape: Shape;
  readonly stream: number;
  /** For integers, the exclusive upper end. */
  readonly max?: number;
}

interface DropoutAttrs {
  readonly p: number;
  readonly stream: number;
}

function checkSource([seed, samples, step]: readonly TensorSpec[], shape: Shape, stream: number): void {
  const wanted: readonly [string, TensorSpec, number][] = [
    ['seed', seed!, 2],
    ['samples', samples!, shape[0] ?? 0],
    ['step', step!, 1],
  ];
  for (const [name, t, n] of wanted) check(t.dtype === 'u32' && t.shape.length === 1 && t.shape[0] === n, 'shape', () => `${name} must be u32 [${n}] for a result of ${showShape(shape)}, not ${t.dtype} ${showShape(t.shape)}`);
  check(Number.isInteger(stream) && stream >= 0 && stream < 2 ** 32, 'input', () => `stream ${stream} is no u32`);
}

function emit(
  dispatch: LowerContext<never>['dispatch'],
  entry: string,
  [seed, samples, step]: readonly Tensor[],
  y: Tensor,
  { x, stream, limit = 0, scale = 1 }: { x?: Bindable; stream: number; limit?: number; scale?: number },
): void {
  const batch = y.shape[0]!;
  const elements = numel(y.shape) / batch;
  dispatch({
    shader: { file: 'random.wgsl', text: shader },
    entry,
    prologue: { X: vectorType(x?.dtype ?? 'f32', 1), Y: vectorType(y.dtype, 1) },
    bindings: { seed: seed!, samples: samples!, step: step!, y, ...(x && { x }) },
    params: { batch, elements, stream, limit, scale },
    workgroups: Math.ceil((batch * Math.ceil(elements / 4)) / 64),
  });
}

const notDifferentiable = 'random numbers are constants to the loss';

const randomNormalOp = defineOp<RandomAttrs>({
  name: 'random_normal',
  doc: 'Standard normal numbers [N, …] f32: Philox4x32-10, then Box-Muller on words (0, 1) and (2, 3) of a block; within 1e-6 of the host on any device.',
  infer(inputs, { shape, stream }) {
    checkSource(inputs, shape, stream);
    return [{ shape, dtype: 'f32' }];
  },
  lower: ({ inputs, outputs, attrs, dispatch }) => emit(dispatch, 'normal', inputs, outputs[0]!, attrs),
  flops: (_, [y]) => 30 * numel(y!.shape),
  grad: { notDifferentiable },
});

const randomUniformOp = defineOp<RandomAttrs>({
  name: 'random_uniform',
  doc: 'Uniform numbers [N, …] f32 in (0, 1], the words of Philox4x32-10 as (x + 0.5)·2⁻³² rounded to f32.',
  infer(inputs, { shape, stream }) {
    checkSource(inputs, shape, stream);
    return [{ shape, dtype: 'f32' }];
  },
  lower: ({ inputs, outputs, attrs, dispatch }) => emit(dispatch, 'uniform_numbers', inputs, outputs[0]!, attrs),
  flops: (_, [y]) => 2 * numel(y!.shape),
  grad: { notDifferentiable },
});

const randomIntOp = defineOp<RandomAttrs>({
  name: 'random_int',
  doc: 'Integers [N, …] u32 from 0 to max − 1: the high half of word·max, whose bias is below max·2⁻³².',
  infer(inputs, { shape, stream, max }) {
    checkSource(inputs, shape, stream);
    check(Number.isInteger(max) && max! >= 1 && max! < 2 ** 32, 'input', () => `max ${max} must be from 1 to 2^32 - 1`);
    return [{ shape, dtype: 'u32' }];
  },
  lower: ({ inputs, outputs, attrs, dispatch }) => emit(dispatch, 'integers', inputs, outputs[0]!, { stream: attrs.stream, limit: attrs.max! }),
  flops: () => 0,
  grad: { notDifferentiable },
});

const dropoutOp = defineOp<DropoutAttrs>({
  name: 'dropout',
  doc: 'x/(1 − p) with probability 1 − p, else 0, element by element (Srivastava et al. 2014). The mask is a function of (seed, sample, step, stream, element) and is made again in the backward pass.',
  infer([x, ...source], { p, stream }) {
    checkSource(source, x!.shape, stream);
    check(p >= 0 && p < 1, 'input', () => `probability ${p} must be in [0, 1)`);
    return [{ shape: x!.shape, dtype: x!.dtype }];
  },
  lower: ({ inputs: [x, ...source], outputs, attrs: { p, stream }, dispatch }) => emit(dispatch, 'dropout', source, outputs[0]!, { x: x!, stream, limit: dropoutLimit(p), scale: 1 / (1 - p) }),
  flops: ([x]) => numel(x!.shape),
  grad: ({ inputs: [, seed, samples, step], outputGrads, attrs: { p, stream } }) => [dropout(outputGrads[0]!, p, { seed: seed!, samples: samples!, step: step!, stream }), undefined, undefined, undefined],
  integerInputs: [1, 2, 3],
});

interface RandomOptions extends RandomSource {
  readonly graph: Graph;
  /** [N, …] */
  readonly shape: Shape;
}

/** Standard normal numbers, f32. */
export const randomNormal = ({ graph, shape, seed, samples, step, stream }: RandomOptions): Tensor => graph.add1(randomNormalOp, [seed, samples, step], { shape, stream });
/** Uniform numbers in (0, 1], f32. */
export const randomUniform = ({ graph, shape, seed, samples, step, stream }: RandomOptions): Tensor => graph.add1(randomUniformOp, [seed, samples, step], { shape, stream });
/** Integers from 0 to `max` − 1, u32. */
export const randomInt = ({ graph, shape, seed, samples, step, stream }: RandomOptions, max: number): Tensor => graph.add1(randomIntOp, [seed, samples, step], { shape, stream, max });
/** `x` [N, …] with each element dropped with probability `p` and the rest scaled by 1/(1 − p). */
export function dropout(x: Tensor, p: number, { seed, samples, step, stream }: RandomSource): Tensor {
  return p === 0 ? x : x.graph.add1(dropoutOp, [x, seed, samples, step], { p, stream });
}

type Draw = (seed: number, place: RngPlace, count: number) => ArrayLike<number>;

/** What the host draws for every row of the batch. */
function hostRows([seed, samples, step]: readonly RefTensor[], shape: Shape, stream: number, draw: Draw): Float64Array {
  const elements = numel(shape) / shape[0]!;
  const out = new Float64Array(numel(shape));
  samples!.data.forEach((index, n) => out.set(Array.from(draw(seed!.data[0]! + seed!.data[1]! * 2 ** 32, { index, step: step!.data[0]!, stream }, elements)), n * elements));
  return out;
}

const sourceInputs = (n: number): OpCase['inputs'] => [
  { shape: [2], dtype: 'u32', fill: { values: [0xdeadbeef, 12345] } },
  { shape: [n], dtype: 'u32', fill: { values: [7, 0, 4000000000, 8] } },
  { shape: [1], dtype: 'u32', fill: { values: [999] } },
];

const drawCases: readonly OpCase<RandomAttrs>[] = [
  { name: 'whole blocks', inputs: sourceInputs(3), attrs: { shape: [3, 4, 4, 4], stream: 0 } },
  { name: 'a block cut off', inputs: sourceInputs(4), attrs: { shape: [4, 3, 3, 3], stream: 2 } },
  { name: 'one number each', inputs: sourceInputs(9), attrs: { shape: [9], stream: 1 } },
  { name: 'one element', inputs: sourceInputs(1), attrs: { shape: [1, 1], stream: 0 } },
];

export const tests: OpTests<never>[] = [
  opTests<RandomAttrs>({
    op: randomNormalOp,
    reference: (source, { shape, stream }) => [hostRows(source, shape, stream, normals)],
    // 8 ulp of the largest number.
    cases: [...drawCases, { name: 'latents', inputs: sourceInputs(4), attrs: { shape: [4, 64, 64, 4], stream: 0 }, bench: true }].map((c) => ({ ...c, tolerance: 1e-6 })),
  }),
  opTests<RandomAttrs>({
    op: randomUniformOp,
    reference: (source, { shape, stream }) => [hostRows(source, shape, stream, uniforms)],
    cases: drawCases.map((c) => ({ ...c, tolerance: 1.2e-7 })),
  }),
  opTests<RandomAttrs>({
    op: randomIntOp,
    reference: (source, { shape, stream, max }) => [hostRows(source, shape, stream, (seed, place, count) => integers(seed, place, count, max!))],
    cases: drawCases.flatMap((c) => [1000, 1, 2 ** 32 - 1].map((max) => ({ ...c, name: `${c.name}, below ${max}`, attrs: { ...c.attrs, max }, tolerance: 0 }))),
  }),
  opTests<DropoutAttrs>({
    op: dropoutOp,
    reference([x, ...source], { p, stream }) {
      const mask = hostRows(source, x!.shape, stream, (seed, place, count) => dropoutMask(seed, place, count, p));
      return [x!.data.map((v, i) => (mask[i]! * v) / (1 - p))];
    },
    cases: [
      { name: 'a tenth', inputs: [{ shape: [3, 5, 7] }, ...sourceInputs(3)], attrs: { p: 0.1, stream: 2 } },
      { name: 'half, whole blocks', inputs: [{ shape: [2, 4, 8] }, ...sourceInputs(2)], attrs: { p: 0.5, stream: 9 } },
      { name: 'nothing', inputs: [{ shape: [2, 3] }, ...sourceInputs(2)], attrs: { p: 0, stream: 2 } },
      { name: 'U-Net layer', inputs: [{ shape: [4, 32, 32, 128] }, ...sourceInputs(4)], attrs: { p: 0.1, stream: 2 }, skipGrad: true, bench: true },
    ],
  }),
] as unknown as OpTests<never>[];
