import shader from '../../../shaders/avg_pool2d.wgsl';
import { check } from '../errors';
import type { Tensor } from '../graph';
import { defineOp, opTests, type LowerContext, type OpTests } from '../op';
import { vectorType } from '../pointwise_codegen';
import { numel, showShape } from '../shape';

type Pair = readonly [number, number];

interface PoolAttrs {
  readonly kernel: Pair;
  readonly stride: Pair;
  readonly padding: Pair;
}

interface PoolGradAttrs extends PoolAttrs {
  /** Height and width of x. */
  readonly size: Pair;
}

const outputSize = (size: number, a: PoolAttrs, d: 0 | 1): number => Math.floor((size + 2 * a.padding[d] - a.kernel[d]) / a.stride[d]) + 1;

function lower({ inputs, outputs, attrs, dispatch }: Pick<LowerContext<PoolAttrs>, 'inputs' | 'outputs' | 'attrs' | 'dispatch'>, backward: boolean): void {
  const [from, to] = [inputs[0]!, outputs[0]!];
  const [x, y] = backward ? [to, from] : [from, to];
  const width = x.shape[3]! % 4 === 0 ? 4 : 1;
  const count = numel(to.shape) / width;
  dispatch({
    shader: { file: 'avg_pool2d.wgsl', text: shader },
    entry: backward ? 'backward' : 'forward',
    prologue: { V: vectorType('f32', width), X: vectorType(from.dtype, width), Y: vectorType(to.dtype, width), WIDTH: `${width}u` },
    bindings: { x: from, y: to },
    params: {
      count,
      channels: x.shape[3]! / width,
      x_height: x.shape[1]!,
      x_width: x.shape[2]!,
      y_height: y.shape[1]!,
      y_width: y.shape[2]!,
      kernel_h: attrs.kernel[0],
      kernel_w: attrs.kernel[1],
      stride_h: attrs.stride[0],
      stride_w: attrs.stride[1],
      padding_h: attrs.padding[0],
      padding_w: attrs.padding[1],
      scale: 1 / (attrs.kernel[0] * attrs.kernel[1]),
    },
    workgroups: Math.ceil(count / 64),
    epilogueWidth: width,
  });
}

const avgPool2dOp = defineOp<PoolAttrs>({
  name: 'avg_pool2d',
  doc: 'Mean over windows of [N,H,W,C] (torch.nn.functional.avg_pool2d with its defaults: padding counts as zeros, sizes are rounded down).',
  infer([x], a) {
    const { shape, dtype } = x!;
    check(shape.length === 4, 'shape', () => `${showShape(shape)} is not [N,H,W,C]`);
    check([...a.kernel, ...a.stride].every((v) => Number.isInteger(v) && v >= 1), 'shape', () => `kernel ${a.kernel} and stride ${a.stride} must be integers of at least 1`);
    check(a.padding.every((p, d) => Number.isInteger(p) && p >= 0 && 2 * p <= a.kernel[d]!), 'shape', () => `padding ${a.padding} must be from 0 to half of kernel ${a.kernel}`);
    const [h, w] = [outputSize(shape[1]!, a, 0), outputSize(shape[2]!, a, 1)];
    check(h >= 1 && w >= 1, 'shape', () => `kernel ${a.kernel} is larger than ${showShape(shape)} padded by ${a.padding}`);
    return [{ shape: [shape[0]!, h, w, shape[3]!], dtype }];
  },
  lower: (ctx) => lower(ctx, false),
  flops: (_, [y], { kernel }) => numel(y!.shape) * kernel[0] * kernel[1],
  grad: ({ inputs: [x], outputGrads, attrs }) => [x!.graph.add1(avgPool2dGradOp, [outputGrads[0]!], { ...attrs, size: [x!.shape[1]!, x!.shape[2]!] })],
  epilogueBuffers: 6,
});

const avgPool2dGradOp = defineOp<PoolGradAttrs>({
  name: 'avg_pool2d_grad',
  doc: 'Gradient of avg_pool2d: each pixel of x adds its share of the windows that hold it, in fixed order.',
  infer([dy], a) {
    const [n, h, w, c] = dy!.shape;
    check(h === outputSize(a.size[0], a, 0) && w === outputSize(a.size[1], a, 1), 'shape', () => `${showShape(dy!.shape)} is not the pooled size of ${a.size}`);
    return [{ shape: [n!, ...a.size, c!], dtype: dy!.dtype }];
  },
  lower: (ctx) => lower(ctx, true),
  flops: ([dy], _, { kernel }) => numel(dy!.shape) * kernel[0] * kernel[1],
  grad: ({ outputGrads, attrs }) => [avgPool2d(outputGrads[0]!, attrs)],
  epilogueBuffers: 6,
});

const pair = (v: number | Pair): Pair => (typeof v === 'number' ? [v, v] : v);

/** Mean over `kernel` windows of `x` [N,H,W,C]; numbers stand for height and width alike. */
export function avgPool2d(x: Tensor, { kernel, stride = kernel, padding = 0 }: { kernel: number | Pair; stride?: number | Pair; padding?: number | Pair }): Tensor {
  return x.graph.add1(avgPool2dOp, [x], { kernel: pair(kernel), stride: pair(stride), padding: pair(padding) });
}

/** Calls `add(index in y, index in x)` for every element of every window. */
function eachTerm([n, h, w, c]: readonly number[], a: PoolAttrs, add: (y: number, x: number) => void): void {
  const [h2, w2] = [outputSize(h!, a, 0), outputSize(w!, a, 1)];
  for (let b = 0; b < n!; b++)
    for (let i = 0; i < h2; i++)
      for (let j = 0; j < w2; j++)
        for (let r = 0; r < a.kernel[0]; r++)
          for (let s = 0; s < a.kernel[1]; s++) {
            const [p, q] = [i * a.stride[0] - a.padding[0] + r, j * a.stride[1] - a.padding[1] + s];
            if (p < 0 || q < 0 || p >= h! || q >= w!) continue;
            for (let k = 0; k < c!; k++) add(((b * h2 + i) * w2 + j) * c! + k, ((b * h! + p) * w! + q) * c! + k);
          }
}

export const tests: OpTests<never>[] = [
  opTests<PoolAttrs>({
    op: avgPool2dOp,
    reference([x], a) {
      const y = new Float64Array(x!.shape[0]! * outputSize(x!.shape[1]!, a, 0) * outputSize(x!.shape[2]!, a, 1) * x!.shape[3]!);
      eachTerm(x!.shape, a, (to, from) => (y[to]! += x!.data[from]! / (a.kernel[0] * a.kernel[1])));
      return [y];
    },
    cases: [
      { name: 'twofold, a row left over', inputs: [{ shape: [2, 7, 6, 8] }], attrs: { kernel: [2, 2], stride: [2, 2], padding: [0, 0] } },
      { name: 'overlapping windows, padding, odd channels', inputs: [{ shape: [2, 5, 7, 3] }], attrs: { kernel: [3, 3], stride: [2, 1], padding: [1, 1] } },
      { name: 'windows apart', inputs: [{ shape: [1, 9, 8, 1] }], attrs: { kernel: [2, 1], stride: [3, 2], padding: [1, 0] } },
      { name: 'U-Net downsampler', inputs: [{ shape: [4, 32, 32, 128] }], attrs: { kernel: [2, 2], stride: [2, 2], padding: [0, 0] }, skipGrad: true, bench: true },
    ],
  }),
  opTests<PoolGradAttrs>({
    op: avgPool2dGradOp,
    reference([dy], a) {
      const [n, , , c] = dy!.shape;
      const dx = new Float64Array(n! * a.size[0] * a.size[1] * c!);
      eachTerm([n!, ...a.size, c!], a, (from, to) => (dx[to]! += dy!.data[from]! / (a.kernel[0] * a.kernel[1])));
      return [dx];
    },
    cases: [
      { name: 'twofold, a row left over', inputs: [{ shape: [2, 3, 3, 8] }], attrs: { kernel: [2, 2], stride: [2, 2], padding: [0, 0], size: [7, 6] } },
      { name: 'overlapping windows, padding', inputs: [{ shape: [2, 3, 7, 3] }], attrs: { kernel: [3, 3], stride: [2, 1], padding: [1, 1], size: [5, 7] } },
    ],
  }),
] as unknown as OpTests<never>[];
