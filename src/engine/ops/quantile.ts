import quantileShader from '../../../shaders/quantile_abs.wgsl';
import { check } from '../errors';
import type { Tensor } from '../graph';
import { defineOp, opTests } from '../op';
import { numel, showShape } from '../shape';

interface QuantileAttrs {
  readonly ratio: number;
  /** The result is clamped to [low, high]. */
  readonly low: number;
  readonly high: number;
}

/** torch.quantile holds the ratio and the rank in f32. */
const rankOf = (ratio: number, size: number): number => Math.fround(Math.fround(ratio) * (size - 1));

const quantileAbsOp = defineOp<QuantileAttrs>({
  name: 'quantile_abs',
  doc: 'Quantile of |x| over all dimensions but the first, by linear interpolation between ranks as torch.quantile does, clamped to [low, high]; [N, …] to [N]. Exact, by radix select on the bits.',
  infer([x], { ratio, low, high }) {
    check(x!.shape.length >= 2, 'shape', () => `${showShape(x!.shape)} must be [N, …] with something to take the quantile of`);
    check(ratio >= 0 && ratio <= 1, 'config', () => `the ratio ${ratio} must be between 0 and 1`);
    check(low <= high, 'config', () => `the bounds [${low}, ${high}] of the quantile are the wrong way round`);
    return [{ shape: [x!.shape[0]!], dtype: 'f32' }];
  },
  lower({ inputs: [x], outputs: [y], attrs: { ratio, low, high }, profile, variant, dispatch }) {
    const rows = x!.shape[0]!;
    const size = numel(x!.shape) / rows;
    const rank = rankOf(ratio, size);
    // SwiftShader takes seconds to compile large workgroup arrays, and its invocations seldom collide.
    const copies = (variant ?? (profile.kind === 'software' ? 'single' : 'copies')) === 'copies';
    dispatch({
      shader: { file: 'quantile_abs.wgsl', text: quantileShader },
      entry: 'forward',
      prologue: { X: x!.dtype, COPIES: copies ? '4u' : '1u' },
      bindings: { x: x!, y: y! },
      params: { rows, size, rank: Math.floor(rank), weight: rank - Math.floor(rank), low, high },
      workgroups: rows,
    });
  },
  flops: ([x]) => 5 * numel(x!.shape),
  variants: ['single', 'copies'],
  grad: { notDifferentiable: 'the quantile belongs to dynamic thresholding, which samplers do' },
});

/** Quantile of |x| per item of the batch, clamped to [low, high]; [N, …] to f32 [N]. See the op for the definition. */
export const quantileAbs = (x: Tensor, ratio: number, low: number, high: number): Tensor => x.graph.add1(quantileAbsOp, [x], { ratio, low, high });

const open = { low: 0, high: 3e38 };

export const tests = opTests<QuantileAttrs>({
  op: quantileAbsOp,
  reference([x], { ratio, low, high }) {
    const rows = x!.shape[0]!;
    const size = x!.data.length / rows;
    const rank = rankOf(ratio, size);
    return [
      Float64Array.from({ length: rows }, (_, n) => {
        const sorted = x!.data.slice(n * size, (n + 1) * size).map(Math.abs).sort();
        const [a, b] = [sorted[Math.floor(rank)]!, sorted[Math.ceil(rank)]!];
        return Math.min(Math.max(a + (rank - Math.floor(rank)) * (b - a), low), high);
      }),
    ];
  },
  // Two roundings of the interpolation; the two elements themselves are exact.
  cases: [
    { name: 'images, ratio of Imagen', inputs: [{ shape: [3, 3, 17, 19] }], attrs: { ratio: 0.995, ...open }, tolerance: 3e-7 },
    { name: 'one element a row', inputs: [{ shape: [5, 1] }], attrs: { ratio: 0.5, ...open }, tolerance: 0 },
    { name: 'fewer elements than invocations', inputs: [{ shape: [2, 7] }], attrs: { ratio: 0.9, ...open }, tolerance: 3e-7 },
    { name: 'smallest', inputs: [{ shape: [2, 301] }], attrs: { ratio: 0, ...open }, tolerance: 0 },
    { name: 'largest', inputs: [{ shape: [2, 301] }], attrs: { ratio: 1, ...open }, tolerance: 0 },
    { name: 'median of an odd number: an element', inputs: [{ shape: [2, 513] }], attrs: { ratio: 0.5, ...open }, tolerance: 0 },
    { name: 'between equals and a successor', inputs: [{ shape: [1, 10], fill: { values: [2, -2, 2, 0, -0, 0, 2, -2, 3, 5] } }], attrs: { ratio: 0.8, ...open }, tolerance: 3e-7 },
    { name: 'between equals', inputs: [{ shape: [1, 1000], fill: { values: [0, 1, -1, 1] } }], attrs: { ratio: 0.6003, ...open }, tolerance: 0 },
    { name: 'clamped below', inputs: [{ shape: [2, 64] }], attrs: { ratio: 0.5, low: 1, high: 1.5 }, tolerance: 0 },
    { name: 'clamped above', inputs: [{ shape: [2, 64] }], attrs: { ratio: 1, low: 1, high: 1.5 }, tolerance: 0 },
    { name: 'a large image', inputs: [{ shape: [1, 3, 128, 128] }], attrs: { ratio: 0.95, ...open }, tolerance: 3e-7, bench: true },
  ],
});
