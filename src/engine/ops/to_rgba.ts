import shader from '../../../shaders/to_rgba.wgsl';
import { check } from '../errors';
import type { Tensor } from '../graph';
import { defineOp, opTests } from '../op';
import { numel, showShape } from '../shape';

interface ToRgbaAttrs {
  /** The byte is round(255 · clamp(factor·x + offset, 0, 1)). */
  readonly factor: number;
  readonly offset: number;
}

/** Pixels of a padded row: copies between buffers and textures want rows of multiples of 256 bytes. */
export const rowPitch = (width: number): number => Math.ceil(width / 64) * 64;

const toRgbaOp = defineOp<ToRgbaAttrs>({
  name: 'to_rgba',
  doc: 'Images [N,C,H,W], C 1 (grey) or 3, as rgba8unorm pixels: u32 [N,H,pitch] of bytes R, G, B, 255 with rows padded to 64 pixels, which a texture copy takes as they are.',
  infer([x]) {
    const [n, c, h, w] = x!.shape;
    check(x!.shape.length === 4 && (c === 1 || c === 3), 'shape', () => `${showShape(x!.shape)} must be [N,C,H,W] with 1 channel (grey) or 3`);
    return [{ shape: [n!, h!, rowPitch(w!)], dtype: 'u32' }];
  },
  lower({ inputs: [x], outputs: [y], attrs: { factor, offset }, dispatch }) {
    const [, channels, height, width] = x!.shape as [number, number, number, number];
    const count = numel(y!.shape);
    dispatch({
      shader: { file: 'to_rgba.wgsl', text: shader },
      entry: 'forward',
      prologue: { X: x!.dtype },
      bindings: { x: x!, y: y! },
      params: { count, pitch: rowPitch(width), height, width, channels, factor, offset },
      workgroups: Math.ceil(count / 64),
    });
  },
  flops: ([x]) => 6 * numel(x!.shape),
  grad: { notDifferentiable: 'bytes have no gradient' },
});

/** Pixels of images `x` [N,C,H,W] whose values lie in `range`: u32 [N,H,pitch], bytes R, G, B, 255; `pitch` is W rounded up to 64. */
export const toRgba = (x: Tensor, [low, high]: readonly [number, number] = [-1, 1]): Tensor => x.graph.add1(toRgbaOp, [x], { factor: 1 / (high - low), offset: -low / (high - low) });

export const tests = opTests<ToRgbaAttrs>({
  op: toRgbaOp,
  reference([x], { factor, offset }) {
    const [n, c, h, w] = x!.shape as [number, number, number, number];
    const pitch = rowPitch(w);
    const y = new Float64Array(n * h * pitch);
    for (let i = 0; i < n; i++) {
      for (let row = 0; row < h; row++) {
        for (let column = 0; column < w; column++) {
          const byte = (channel: number) => Math.floor(Math.min(Math.max(x!.data[((i * c + Math.min(channel, c - 1)) * h + row) * w + column]! * factor + offset, 0), 1) * 255 + 0.5);
          y[(i * h + row) * pitch + column] = byte(0) + byte(1) * 2 ** 8 + byte(2) * 2 ** 16 + 255 * 2 ** 24;
        }
      }
    }
    return [y];
  },
  // Bytes are exact.
  cases: [
    { name: 'grey, a row padded', inputs: [{ shape: [2, 1, 5, 7] }], attrs: { factor: 0.5, offset: 0.5 }, tolerance: 0 },
    { name: 'colours, a row longer than the padding', inputs: [{ shape: [2, 3, 3, 65] }], attrs: { factor: 0.5, offset: 0.5 }, tolerance: 0 },
    { name: 'from 0 to 1, ends and beyond', inputs: [{ shape: [1, 3, 2, 64], fill: { values: [0, 1, -1, 2, 0.25, 0.75, 0.2, 0.85] } }], attrs: { factor: 1, offset: 0 }, tolerance: 0 },
    { name: 'one pixel', inputs: [{ shape: [1, 1, 1, 1] }], attrs: { factor: 0.5, offset: 0.5 }, tolerance: 0 },
  ],
});
