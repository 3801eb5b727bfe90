import shader from '../../../shaders/winograd.wgsl';
import type { AdapterProfile } from '../device';
import type { Tensor } from '../graph';
import type { Bindable, DispatchSpec, LowerContext } from '../op';
import { vectorType } from '../pointwise_codegen';
import { dtypeBytes, numel, type Shape } from '../shape';
import { emitMatmul, plainProduct } from './matmul';

/** A convolution with 3x3 filters at stride 1, or the gradient of its input, which is another one. */
export interface WinogradShape {
  readonly n: number;
  /** Height and width of the image read, after the upsampling. */
  readonly from: readonly [number, number];
  readonly to: readonly [number, number];
  readonly channels: number;
  readonly outputs: number;
  /** Zeros above and left of the image; negative where that much of it is left out. */
  readonly padding: readonly [top: number, left: number];
  readonly upsample: boolean;
  /** The filter is turned, and its channels change places. */
  readonly gradient: boolean;
}

const tilesOf = ({ n, to }: WinogradShape): number => n * Math.ceil(to[0] / 2) * Math.ceil(to[1] / 2);

/** Whether the kernels take these sizes: channels in fours, and a workspace that one binding holds. */
export const winogradFits = (d: WinogradShape, { limits }: AdapterProfile): boolean =>
  d.channels % 4 === 0 && d.outputs % 4 === 0 && 16 * 4 * Math.max(tilesOf(d) * Math.max(d.channels, d.outputs), d.channels * d.outputs) <= limits.maxStorageBufferBindingSize;

/**
 * Whether it is faster than the sum, by measurements on software adapters (bench/ROOFLINE.md). It takes four dispatches and a workspace larger than
 * the image, which a forward pass should not: there, and on GPUs, only the tuner chooses it. A training step holds far more than that anyway.
 * On llvmpipe with subgroups the sum is quick, and only large products repay the four dispatches.
 */
export const winogradPays = (d: WinogradShape, { kind, subgroupSize }: AdapterProfile): boolean =>
  kind === 'software' && tilesOf(d) >= 64 && Math.min(d.channels, d.outputs) >= 64 && (subgroupSize !== 8 || tilesOf(d) * d.channels * d.outputs >= 2 ** 21);

/** The dispatches of F(2x2, 3x3): x [N,H,W,C] and w [3,3,C,K] (dy and w in the gradient) to y. Workspace: 64 bytes for each tile and channel on either side, and for each pair of channels. */
export function emitWinograd(ctx: LowerContext<object>, d: WinogradShape, x: Tensor, w: Tensor, y: Tensor): void {
  const { temp, dispatch } = ctx;
  const { channels, outputs } = d;
  const [tilesY, tilesX] = [Math.ceil(d.to[0] / 2), Math.ceil(d.to[1] / 2)];
  const tiles = tilesOf(d);
  const wide = (t: { dtype: Tensor['dtype'] }): string => vectorType(t.dtype, 4);
  const u = temp('transformed filter', [16, channels, outputs]);
  const v = temp('transformed image', [16, tiles, channels]);
  const m = temp('products', [16, tiles, outputs]);
  const bytes = (t: { shape: Shape; dtype: Tensor['dtype'] }): number => numel(t.shape) * dtypeBytes[t.dtype];
  const transform = (entry: string, count: number, from: Tensor | typeof m, to: Tensor | typeof m, bindings: Readonly<Record<string, Bindable>>, more: Partial<DispatchSpec> = {}): void =>
    dispatch({
      shader: { file: 'winograd.wgsl', text: shader },
      entry,
      prologue: { X: wide(x), W: vectorType(w.dtype, 1), Y: wide(y), GRADIENT: d.gradient },
      bindings,
      params: {
        channels,
        outputs,
        tiles_y: tilesY,
        tiles_x: tilesX,
        tiles,
        height: d.from[0],
        width: d.from[1],
        y_height: d.to[0],
        y_width: d.to[1],
        pad_top: d.padding[0] >>> 0,
        pad_left: d.padding[1] >>> 0,
        upsample: Number(d.upsample),
      },
      workgroups: Math.ceil(count / 64),
      // Additions of the transforms are this way's price, not the convolution's flops.
      cost: { flops: 0, bytes: bytes(from) + bytes(to) },
      ...more,
    });
  transform('filter_transform', channels * outputs, w, u, { w, filters: u });
  transform('input_transform', (tiles * channels) / 4, x, v, { source: x, image: v });
  let flops = 2 * d.n * d.to[0] * d.to[1] * channels * outputs * 9;
  const product = {
    ...ctx,
    variant: undefined,
    // What follows the convolution belongs to the last dispatch.
    dispatch({ epilogueWidth: _, ...spec }: DispatchSpec) {
      dispatch({ ...spec, cost: { flops, bytes: bytes(u) + bytes(v) + bytes(m) } });
      flops = 0;
    },
  };
  emitMatmul(product, { batch: 16, m: tiles, n: outputs, k: channels, aStride: tiles * channels, bShared: false }, plainProduct, [v, u], m);
  transform('output_transform', (tiles * outputs) / 4, m, y, { products: m, y }, { epilogueWidth: 4 });
}
