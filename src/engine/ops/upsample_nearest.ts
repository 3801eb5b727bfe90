import gradShader from '../../../shaders/upsample_nearest_grad.wgsl';
import shader from '../../../shaders/upsample_nearest.wgsl';
import { check } from '../errors';
import type { Tensor, TensorSpec } from '../graph';
import { defineOp, opTests, type LowerContext, type OpTests } from '../op';
import { vectorType } from '../pointwise_codegen';
import { numel, showShape } from '../shape';

interface SizeAttrs {
  /** Height and width of the result. */
  readonly size: readonly [number, number];
}

function infer([x]: readonly TensorSpec[], { size: [h, w] }: SizeAttrs): TensorSpec[] {
  const { shape, dtype } = x!;
  check(shape.length === 4, 'shape', () => `${showShape(shape)} is not [N,H,W,C]`);
  check([h, w].every((d) => Number.isInteger(d) && d >= 1), 'shape', () => `${h}x${w} is no size of an image`);
  return [{ shape: [shape[0]!, h, w, shape[3]!], dtype }];
}

/** `large` is the tensor on y's side, `small` on x's side of the forward op; `to` is the one that is written. */
function params(small: Tensor, large: Tensor, to: Tensor, width: 1 | 4) {
  const [, h, w, c] = small.shape;
  return { count: numel(to.shape) / width, channels: c! / width, x_height: h!, x_width: w!, y_height: large.shape[1]!, y_width: large.shape[2]! };
}

function lower({ inputs, outputs, dispatch }: Pick<LowerContext<never>, 'inputs' | 'outputs' | 'dispatch'>, backward: boolean): void {
  const [from, to] = [inputs[0]!, outputs[0]!];
  const [x, y] = backward ? [to, from] : [from, to];
  const width = x.shape[3]! % 4 === 0 ? 4 : 1;
  const p = params(x, y, to, width);
  dispatch({
    shader: backward ? { file: 'upsample_nearest_grad.wgsl', text: gradShader } : { file: 'upsample_nearest.wgsl', text: shader },
    entry: 'forward',
    prologue: { V: vectorType('f32', width), X: vectorType(x.dtype, width), Y: vectorType(y.dtype, width), WIDTH: `${width}u` },
    bindings: backward ? { dy: from, dx: to } : { x: from, y: to },
    params: p,
    workgroups: Math.ceil(p.count / 64),
    epilogueWidth: width,
  });
}

const upsampleNearestOp = defineOp<SizeAttrs>({
  name: 'upsample_nearest',
  doc: 'Nearest-neighbour resampling of [N,H,W,C] to any height and width: row i is read from row floor(i·H/H2) (torch.nn.functional.interpolate, mode "nearest").',
  infer,
  lower: (ctx) => lower(ctx, false),
  flops: () => 0,
  grad: ({ inputs: [x], outputGrads }) => [x!.graph.add1(upsampleNearestGradOp, [outputGrads[0]!], { size: [x!.shape[1]!, x!.shape[2]!] })],
  epilogueBuffers: 6,
});

const upsampleNearestGradOp = defineOp<SizeAttrs>({
  name: 'upsample_nearest_grad',
  doc: 'Sums, for each pixel of x, the pixels that upsample_nearest read from it; `size` is that of x. A 2x2 sum for twofold upsampling.',
  infer,
  lower: (ctx) => lower(ctx, true),
  flops: ([dy]) => numel(dy!.shape),
  grad: ({ inputs: [dy], outputGrads }) => [upsampleNearest(outputGrads[0]!, [dy!.shape[1]!, dy!.shape[2]!])],
  epilogueBuffers: 6,
});

/** `x` [N,H,W,C] resampled to height and width `size` by nearest neighbours: row i from row floor(i·H/size[0]). */
export const upsampleNearest = (x: Tensor, size: readonly [number, number]): Tensor => x.graph.add1(upsampleNearestOp, [x], { size });

/** {@link upsampleNearest} to twice the height and width. */
export const upsampleNearest2x = (x: Tensor): Tensor => upsampleNearest(x, [2 * x.shape[1]!, 2 * x.shape[2]!]);

/** Calls `pair(index in large, index in small)` for every element of the large one. */
function eachPair([n, h, w, c]: readonly number[], [h2, w2]: readonly [number, number], pair: (large: number, small: number) => void): void {
  for (let b = 0; b < n!; b++)
    for (let i = 0; i < h2; i++)
      for (let j = 0; j < w2; j++)
        for (let k = 0; k < c!; k++) pair(((b * h2 + i) * w2 + j) * c! + k, ((b * h! + Math.floor((i * h!) / h2)) * w! + Math.floor((j * w!) / w2)) * c! + k);
}

export const tests: OpTests<SizeAttrs>[] = [
  opTests<SizeAttrs>({
    op: upsampleNearestOp,
    reference([x], { size }) {
      const y = new Float64Array(x!.shape[0]! * size[0] * size[1] * x!.shape[3]!);
      eachPair(x!.shape, size, (l, s) => (y[l] = x!.data[s]!));
      return [y];
    },
    cases: [
      { name: 'twofold', inputs: [{ shape: [2, 4, 3, 8] }], attrs: { size: [8, 6] }, tolerance: 0 },
      { name: 'to an odd size, odd channels', inputs: [{ shape: [2, 4, 5, 3] }], attrs: { size: [7, 9] }, tolerance: 0 },
      { name: 'fewer rows, more columns', inputs: [{ shape: [1, 7, 2, 4] }], attrs: { size: [3, 5] }, tolerance: 0 },
      { name: 'one pixel', inputs: [{ shape: [1, 1, 1, 1] }], attrs: { size: [3, 1] }, tolerance: 0 },
      { name: 'U-Net upsampler', inputs: [{ shape: [4, 16, 16, 256] }], attrs: { size: [32, 32] }, tolerance: 0, skipGrad: true, bench: true },
    ],
  }),
  opTests<SizeAttrs>({
    op: upsampleNearestGradOp,
    reference([dy], { size }) {
      const [n, h2, w2, c] = dy!.shape;
      const dx = new Float64Array(n! * size[0] * size[1] * c!);
      eachPair([n!, ...size, c!], [h2!, w2!], (l, s) => (dx[s]! += dy!.data[l]!));
      return [dx];
    },
    cases: [
      { name: 'twofold', inputs: [{ shape: [2, 8, 6, 8] }], attrs: { size: [4, 3] } },
      { name: 'odd', inputs: [{ shape: [2, 7, 9, 3] }], attrs: { size: [4, 5] } },
      { name: 'pixels that were never read', inputs: [{ shape: [1, 3, 5, 4] }], attrs: { size: [7, 2] } },
      { name: 'U-Net upsampler', inputs: [{ shape: [4, 32, 32, 256] }], attrs: { size: [16, 16] }, skipGrad: true, bench: true },
    ],
  }),
];
