import shader from '../../../shaders/upfirdn2d.wgsl';
import { check } from '../errors';
import type { Tensor } from '../graph';
import { defineOp, opTests, type OpDef } from '../op';
import { vectorType } from '../pointwise_codegen';
import { numel, showShape, type Shape } from '../shape';

interface FirAttrs {
  readonly up: number;
  readonly down: number;
  /** Padding before the first row and column of the upsampled image; negative cuts off. */
  readonly pad: readonly [number, number];
  /** Height and width of the result: fixes the padding behind. */
  readonly size: readonly [number, number];
  /** A convolution (kernel turned by 180°) as upfirdn is defined, or a correlation, as in its gradient. */
  readonly flip: boolean;
}

const upfirdn2dOp: OpDef<FirAttrs> = defineOp<FirAttrs>({
  name: 'upfirdn2d',
  doc: 'Depthwise FIR resampling of [N,H,W,C]: upsample by inserting zeros, pad, convolve with a [kh,kw] kernel, keep every down-th pixel (Karras et al. 2019, StyleGAN2). Its gradient is another one with up and down exchanged and the kernel turned.',
  infer([x, kernel], { up, down, size }) {
    check(x!.shape.length === 4, 'shape', () => `${showShape(x!.shape)} is not [N,H,W,C]`);
    check(kernel!.shape.length === 2 && kernel!.dtype === 'f32', 'shape', () => `the kernel must be f32 [kh,kw], not ${kernel!.dtype} ${showShape(kernel!.shape)}`);
    check([up, down].every((f) => Number.isInteger(f) && f >= 1), 'shape', () => `up ${up} and down ${down} must be integers of at least 1`);
    check(size.every((d) => Number.isInteger(d) && d >= 1), 'shape', () => `no pixel is left of ${showShape(x!.shape)}: the kernel ${showShape(kernel!.shape)} is larger than the padded image`);
    return [{ shape: [x!.shape[0]!, ...size, x!.shape[3]!], dtype: x!.dtype }];
  },
  lower({ inputs: [x, kernel], outputs: [y], attrs: { up, down, pad, flip }, dispatch }) {
    const width = x!.shape[3]! % 4 === 0 ? 4 : 1;
    const count = numel(y!.shape) / width;
    dispatch({
      shader: { file: 'upfirdn2d.wgsl', text: shader },
      entry: 'forward',
      prologue: { V: vectorType('f32', width), X: vectorType(x!.dtype, width), Y: vectorType(y!.dtype, width), WIDTH: `${width}u`, FLIP: flip },
      bindings: { x: x!, kernel: kernel!, y: y! },
      params: {
        count,
        channels: x!.shape[3]! / width,
        x_height: x!.shape[1]!,
        x_width: x!.shape[2]!,
        y_height: y!.shape[1]!,
        y_width: y!.shape[2]!,
        kernel_h: kernel!.shape[0]!,
        kernel_w: kernel!.shape[1]!,
        up,
        down,
        pad_h: pad[0],
        pad_w: pad[1],
      },
      workgroups: Math.ceil(count / 64),
      epilogueWidth: width,
    });
  },
  flops: ([, kernel], [y], { up }) => (2 * numel(y!.shape) * numel(kernel!.shape)) / (up * up),
  grad({ graph, inputs: [x, kernel], outputGrads, attrs: { up, down, pad, flip } }) {
    const back: FirAttrs = { up: down, down: up, pad: [kernel!.shape[0]! - 1 - pad[0], kernel!.shape[1]! - 1 - pad[1]], size: [x!.shape[1]!, x!.shape[2]!], flip: !flip };
    return [graph.add1(upfirdn2dOp, [outputGrads[0]!, kernel!], back), undefined];
  },
  // Kernels are fixed filters: no gradient goes to them.
  integerInputs: [1],
  epilogueBuffers: 5,
});

/**
 * FIR resampling of `x` [N,H,W,C] by a fixed kernel [kh][kw], each channel by itself, as diffusers' upfirdn2d:
 * zeros inserted (`up`), `padding` [before, after] rows and columns of zeros (negative: cut off), convolution, every `down`-th pixel.
 */
export function upfirdn2d(x: Tensor, kernel: readonly (readonly number[])[], { up = 1, down = 1, padding = [0, 0] }: { up?: number; down?: number; padding?: readonly [number, number] }): Tensor {
  const taps = kernel[0]?.length ?? 0;
  check(taps > 0 && kernel.every((row) => row.length === taps), 'shape', () => `upfirdn2d: the kernel's ${kernel.length} rows must have the same length, at least 1`);
  const constant = x.graph.constant('fir_kernel', [kernel.length, taps], Float32Array.from(kernel.flat()));
  const size = (d: number, k: number) => Math.floor((d * up + padding[0] + padding[1] - k) / down) + 1;
  return x.graph.add1(upfirdn2dOp, [x, constant], { up, down, pad: [padding[0], padding[0]], size: [size(x.shape[1]!, kernel.length), size(x.shape[2]!, taps)], flip: true });
}

export const tests = opTests<FirAttrs>({
  op: upfirdn2dOp,
  // Step by step as it is defined: the padded, upsampled image exists in memory.
  reference([x, kernel], { up, down, pad, size, flip }) {
    const [n, h, w, c] = x!.shape as [number, number, number, number];
    const [kh, kw] = kernel!.shape as [number, number];
    const padded: Shape = [(size[0] - 1) * down + kh, (size[1] - 1) * down + kw];
    const y = new Float64Array(n * size[0] * size[1] * c);
    for (let b = 0; b < n; b++) {
      for (let k = 0; k < c; k++) {
        const image = new Float64Array(padded[0]! * padded[1]!);
        for (let i = 0; i < h; i++) {
          for (let j = 0; j < w; j++) {
            const [p, q] = [i * up + pad[0], j * up + pad[1]];
            if (p >= 0 && q >= 0 && p < padded[0]! && q < padded[1]!) image[p * padded[1]! + q] = x!.data[((b * h + i) * w + j) * c + k]!;
          }
        }
        for (let i = 0; i < size[0]; i++)
          for (let j = 0; j < size[1]; j++)
            for (let r = 0; r < kh; r++)
              for (let s = 0; s < kw; s++)
                y[((b * size[0] + i) * size[1] + j) * c + k]! += image[(i * down + r) * padded[1]! + j * down + s]! * kernel!.data[flip ? (kh - 1 - r) * kw + kw - 1 - s : r * kw + s]!;
      }
    }
    return [y];
  },
  cases: [
    { name: 'fir downsampling', inputs: [{ shape: [2, 8, 6, 8] }, { shape: [4, 4], dtype: 'f32' }], attrs: { up: 1, down: 2, pad: [1, 1], size: [4, 3], flip: true } },
    { name: 'fir upsampling, odd channels', inputs: [{ shape: [2, 5, 3, 3] }, { shape: [4, 4], dtype: 'f32' }], attrs: { up: 2, down: 1, pad: [2, 2], size: [10, 6], flip: true } },
    { name: 'both factors, uneven kernel', inputs: [{ shape: [1, 5, 7, 4] }, { shape: [3, 5], dtype: 'f32' }], attrs: { up: 3, down: 2, pad: [2, 1], size: [8, 9], flip: true } },
    { name: 'cut off, correlation', inputs: [{ shape: [1, 9, 8, 1] }, { shape: [2, 3], dtype: 'f32' }], attrs: { up: 2, down: 3, pad: [-3, -1], size: [5, 4], flip: false } },
    { name: 'score network downsampler', inputs: [{ shape: [1, 64, 64, 128] }, { shape: [4, 4], dtype: 'f32' }], attrs: { up: 1, down: 2, pad: [1, 1], size: [32, 32], flip: true }, skipGrad: true, bench: true },
  ],
});
