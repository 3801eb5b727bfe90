import conv2dShader from '../../../shaders/conv2d.wgsl';
import broadcastShader from '../../../shaders/conv2d_broadcast.wgsl';
import tapRowsShader from '../../../shaders/conv2d_tap_rows.wgsl';
import subgroupShader from '../../../shaders/conv2d_subgroup.wgsl';
import subgroupMatrixShader from '../../../shaders/conv2d_subgroup_matrix.wgsl';
import tiledShader from '../../../shaders/conv2d_tiled.wgsl';
import gradWeightShader from '../../../shaders/conv2d_grad_weight.wgsl';
import gradWeightTapRowsShader from '../../../shaders/conv2d_grad_weight_tap_rows.wgsl';
import gradWeightBroadcastShader from '../../../shaders/conv2d_grad_weight_broadcast.wgsl';
import gradWeightSubgroupShader from '../../../shaders/conv2d_grad_weight_subgroup.wgsl';
import unfoldShader from '../../../shaders/unfold.wgsl';
import type { PackedFormat } from '../buffer_view';
import type { AdapterProfile } from '../device';
import { BruitError } from '../errors';
import type { Tensor, TensorSpec } from '../graph';
import { defineOp, opTests, type Bindable, type LowerContext, type RefTensor } from '../op';
import { vectorType } from '../pointwise_codegen';
import type { ShaderSource } from '../shader';
import { dtypeBytes, numel, showShape } from '../shape';
import { concat, emitCopy } from './copy';
import { emitMatmul, plainProduct } from './matmul';
import { kernelFor, productVariants, subgroupTiles, type KernelName } from './product_kernel';
import { reshape } from './reshape';
import { splitSum } from './split_sum';
import { matrixTiles, type MatrixTile } from './subgroup_matrix';
import { emitWinograd, winogradFits, winogradPays, type WinogradShape } from './winograd';
import { sum } from './sum';
import { weightOperand } from './weight_operand';

export interface Conv2dOptions {
  /** 1 by default. */
  readonly stride?: number;
  /** Zeros around the image: on all sides, or [top, bottom, left, right]. 0 by default. */
  readonly padding?: number | readonly [number, number, number, number];
  /** Reads x as if enlarged twice by nearest neighbour, without writing the enlarged image. */
  readonly upsample?: boolean;
}

interface ConvAttrs {
  readonly stride: number;
  readonly padding: readonly [number, number, number, number];
  readonly upsample: boolean;
}

/** Sizes of a convolution, whichever of its three tensors is computed. */
interface Dimensions extends ConvAttrs {
  readonly n: number;
  /** Of the image that the filter moves over: x, after the upsampling. */
  readonly h: number;
  readonly w: number;
  readonly c: number;
  readonly r: number;
  readonly s: number;
  readonly k: number;
  readonly p: number;
  readonly q: number;
}

function dimensions(x: readonly number[], filter: readonly number[], attrs: ConvAttrs): Dimensions {
  const { stride, padding, upsample } = attrs;
  const shapes = `x ${showShape(x)}, w ${showShape(filter)}`;
  if (x.length !== 4 || filter.length !== 4) throw new BruitError('shape', `x is [N,H,W,C] and w is [R,S,C,K]: ${shapes}`);
  const [n, height, width, c] = x as [number, number, number, number];
  const [r, s, cOfFilter, k] = filter as [number, number, number, number];
  if (c !== cOfFilter) throw new BruitError('shape', `x has ${c} channels, the filter reads ${cOfFilter}: ${shapes}`);
  if (!Number.isInteger(stride) || stride < 1) throw new BruitError('shape', `stride ${stride} must be an integer of at least 1`);
  if (padding.some((p) => !Number.isInteger(p) || p < 0)) throw new BruitError('shape', `padding [${padding.join(', ')}] must be integers of at least 0`);
  const h = upsample ? 2 * height : height;
  const w = upsample ? 2 * width : width;
  const p = Math.floor((h + padding[0] + padding[1] - r) / stride) + 1;
  const q = Math.floor((w + padding[2] + padding[3] - s) / stride) + 1;
  if (p < 1 || q < 1) throw new BruitError('shape', `a ${r}x${s} filter does not fit a ${h}x${w} image with padding [${padding.join(', ')}]: ${shapes}`);
  return { ...attrs, n, h, w, c, r, s, k, p, q };
}

const roundUp = (x: number, step: number): number => Math.ceil(x / step) * step;

/** What one workgroup (tiled, subgroup) or invocation (direct) computes of the product. */
interface Tile extends Partial<Pick<MatrixTile, 'stageK' | 'prologue'>> {
  readonly rows: number;
  readonly columns: number;
  /** Register tile that the shader includes. */
  readonly include?: 'lib/tile_4x4.wgsl' | 'lib/tile_8x8.wgsl';
  /** Entry point, `forward` where the shader has one for all tiles. */
  readonly entry?: string;
  /** Terms of a sum from which on the tile is worth its compilation. */
  readonly leastTerms?: number;
}

interface Kernel {
  readonly shader: ShaderSource;
  /** From large to small. */
  readonly tiles: readonly Tile[];
  /** Tiles that fill an adapter: the reduction is split, or the tile made smaller, where there are fewer. */
  readonly wanted: number;
  readonly tilesPerWorkgroup: number;
  /** Channels, or pixels of the weight gradient, that one turn of the kernel's loop takes. */
  readonly step: number;
}

const tile4x4 = 'lib/tile_4x4.wgsl';
const tile8x8 = 'lib/tile_8x8.wgsl';
const direct = { tiles: [{ rows: 16, columns: 8, leastTerms: 16 }, { rows: 8, columns: 4, entry: 'narrow' }], wanted: 64, tilesPerWorkgroup: 8, step: 4 } as const;
const broadcast = { tiles: [{ rows: 8, columns: 16 }], wanted: 8, tilesPerWorkgroup: 1, step: 4 } as const;
const subgroup = { tiles: [{ rows: 64, columns: 32, prologue: { ROWS: '64u' } }, { rows: 32, columns: 32, prologue: { ROWS: '32u' } }], wanted: 16, tilesPerWorkgroup: 1, step: 4 } as const;

const productKernels: Readonly<Record<KernelName | 'tap_rows' | 'subgroup_matrix', Kernel>> = {
  direct: { shader: { file: 'conv2d.wgsl', text: conv2dShader }, ...direct },
  broadcast: { shader: { file: 'conv2d_broadcast.wgsl', text: broadcastShader }, ...broadcast },
  subgroup: { shader: { file: 'conv2d_subgroup.wgsl', text: subgroupShader }, ...subgroup },
  tap_rows: { shader: { file: 'conv2d_tap_rows.wgsl', text: tapRowsShader }, tiles: [{ rows: 16, columns: 8 }], wanted: 1, tilesPerWorkgroup: 8, step: 1 },
  tiled: {
    shader: { file: 'conv2d_tiled.wgsl', text: tiledShader },
    tiles: [{ rows: 64, columns: 64, include: tile8x8 }, { rows: 32, columns: 32, include: tile4x4 }],
    wanted: 96,
    tilesPerWorkgroup: 1,
    step: 4,
  },
  subgroup_matrix: {
    shader: { file: 'conv2d_subgroup_matrix.wgsl', text: subgroupMatrixShader },
    tiles: [], // as the adapter's matrices are: matrixTiles
    wanted: 96,
    tilesPerWorkgroup: 1,
    step: 4,
  },
};
const gradWeightKernels: Readonly<Record<Exclude<KernelName, 'tiled'> | 'tap_rows', Kernel>> = {
  direct: { shader: { file: 'conv2d_grad_weight.wgsl', text: gradWeightShader }, ...direct, tiles: [{ rows: 8, columns: 8 }, { rows: 8, columns: 4, entry: 'narrow' }] },
  broadcast: { shader: { file: 'conv2d_grad_weight_broadcast.wgsl', text: gradWeightBroadcastShader }, ...broadcast },
  subgroup: { shader: { file: 'conv2d_grad_weight_subgroup.wgsl', text: gradWeightSubgroupShader }, ...subgroup, tiles: [{ rows: 32, columns: 32 }] },
  tap_rows: { shader: { file: 'conv2d_grad_weight_tap_rows.wgsl', text: gradWeightTapRowsShader }, tiles: [{ rows: 12, columns: 8 }], wanted: 64, tilesPerWorkgroup: 8, step: 4 },
};

/** The largest tile that leaves enough of them, none much larger than the matrix; a smaller one is no better for few columns if it is as wide. */
function chooseTile({ tiles, wanted }: Kernel, count: (t: Tile) => number, m: number, n: number, terms: number): Tile {
  const smallest = tiles[tiles.length - 1]!;
  return tiles.find((t) => count(t) >= wanted && m * 2 > t.rows && (n * 2 > t.columns || t.columns === smallest.columns) && terms >= (t.leastTerms ?? 0)) ?? smallest;
}

/**
 * Whether to lay the pixels of all taps side by side first. A tap of few channels is a loop of few turns, and on software adapters each start of a loop costs as
 * much as two of its turns: at 64x64 on SwiftShader 3 to 64 channels take 0.4 of the time so, 8 to 64 take 0.8. Where channels less than double there is nothing to win
 * for a workspace several times as large as the result. The kernel for subgroups of 8 is as quick or quicker without.
 */
const unfolds = ({ n, p, q, r, s, c, k, upsample }: Dimensions, { kind, subgroupSize, limits }: AdapterProfile): boolean =>
  kind === 'software' && subgroupSize !== 8 && r * s > 1 && !upsample && c <= 8 && k > Math.max(2 * c, 15) && 4 * n * p * q * r * s * c <= limits.maxStorageBufferBindingSize;

/** `source` convolved with the filter as one product with the filter's r·s·c rows, after shaders/unfold.wgsl. */
function lowerUnfolded(ctx: LowerContext<ConvAttrs>, d: Dimensions): void {
  const { n, h, w, c, r, s, p, q, stride, padding } = d;
  const source = ctx.inputs[0]!;
  const patches = ctx.temp('unfolded input', [n, p, q, r * s * c], source.dtype);
  ctx.dispatch({
    shader: { file: 'unfold.wgsl', text: unfoldShader },
    entry: 'forward',
    prologue: { X: vectorType(source.dtype, 1) },
    bindings: { x: source, y: patches },
    params: { pixels: n * p * q, channels: c, height: h, width: w, y_height: p, y_width: q, taps_y: r, taps_x: s, stride, pad_top: padding[0], pad_left: padding[2] },
    workgroups: Math.ceil((n * p * q) / 64),
    cost: { flops: 0, bytes: source.bytes + numel(patches.shape) * dtypeBytes[source.dtype] },
  });
  lowerAsMatmul(ctx, d, patches);
}

/** Of a forced variant, what a product has besides convolution. */
const ownVariant = (variant: string | undefined): string | undefined => (variant === 'winograd' || variant === 'tap_rows' ? undefined : variant);

/** `source`, whose pixels hold all that a result pixel reads, times the filter's r·s·c rows. */
function lowerAsMatmul({ variant, ...ctx }: LowerContext<ConvAttrs>, { n, p, q, r, s, c, k }: Dimensions, source: Bindable): void {
  const product = { ...ctx, variant: ownVariant(variant) };
  emitMatmul(product, { batch: 1, m: n * p * q, n: k, k: r * s * c, aStride: 0, bShared: true }, plainProduct, [source, ctx.inputs[1]!], ctx.outputs[0]!);
}

/** Whether conv2d_tap_rows.wgsl takes these sizes. Of the gradient the same holds: it is a convolution with the same padding. */
const tapRowsFit = ({ s, stride, padding, q, w }: Dimensions, gradient: boolean): boolean => s === 3 && stride === 1 && padding[2] === 1 && padding[3] === 1 && (gradient ? w : q) % 4 === 0;

/** Whether it is the fastest: on software adapters without shuffles worth their while, where there are enough tiles and few columns of them lie outside. */
function tapRowsPay({ n, p, q, h, w, c, k }: Dimensions, gradient: boolean, { kind, subgroupSize }: AdapterProfile, packed: PackedFormat | undefined): boolean {
  const columns = gradient ? c : k;
  const tiles = Math.ceil((n * (gradient ? h * w : p * q)) / 16) * Math.ceil(columns / 8);
  // Each number of a quantised weight would fetch its scale again.
  return kind === 'software' && subgroupSize !== 8 && (packed === undefined || packed === 'f16' || packed === 'bf16') && tiles >= 32 && columns / roundUp(columns, 8) >= 0.75;
}

/** The same of conv2d_grad_weight_tap_rows.wgsl. */
const gradWeightTapRowsPay = ({ c, k }: Dimensions, { kind, subgroupSize }: AdapterProfile): boolean =>
  kind === 'software' && subgroupSize !== 8 && c / roundUp(c, 4) >= 0.75 && k / roundUp(k, 8) >= 0.75;

/** `source` convolved with the filter, or (gradient) dL/dx from dL/dy: see lib/conv2d_operands.wgsl. */
function lowerProduct<A extends ConvAttrs>(ctx: LowerContext<A>, d: Dimensions, gradient: boolean): void {
  const { inputs, outputs: [y], profile, variant, packed, temp, dispatch } = ctx;
  const [source, filter] = inputs as [Tensor, Tensor];
  if ((variant === 'winograd' || (variant === undefined && gradient)) && d.r === 3 && d.s === 3 && d.stride === 1 && !packed(filter)) {
    const shape = winogradShape(d, gradient);
    if (winogradFits(shape, profile) && (variant === 'winograd' || winogradPays(shape, profile))) return emitWinograd(ctx, shape, source, filter, y!);
  }
  if (!gradient && d.r === 1 && d.s === 1 && d.stride === 1 && !d.upsample && d.padding.every((pad) => pad === 0)) return lowerAsMatmul(ctx, d, source);
  const byRows = tapRowsFit(d, gradient) && (variant === 'tap_rows' || (variant === undefined && tapRowsPay(d, gradient, profile, packed(filter))));
  if (unfolds(d, profile) && !gradient && !byRows) return lowerUnfolded(ctx, d);
  const own = ownVariant(variant);
  const channels = gradient ? d.k : d.c;
  const n = gradient ? d.c : d.k;
  const phaseEdge = gradient ? d.stride : 1;
  const phases = phaseEdge ** 2;
  const [height, width] = gradient ? [d.p, d.q] : [d.h, d.w];
  const [yHeight, yWidth] = gradient ? [d.h, d.w] : [d.p, d.q];
  const rows = Math.ceil(yHeight / phaseEdge);
  const columns = Math.ceil(yWidth / phaseEdge);
  const phaseM = d.n * rows * columns;
  const taps = d.r * d.s;
  const matrices = matrixTiles(profile, own, { left: source.dtype, right: filter.dtype, packed: packed(filter), m: phaseM, n, k: taps * channels });
  const name = matrices ? 'subgroup_matrix' : byRows ? 'tap_rows' : kernelFor(profile, own, n, 9);
  const found = productKernels[name];
  const kernel: Kernel = { ...found, tiles: matrices ?? (name === 'subgroup' ? subgroupTiles(found.tiles, profile) : found.tiles) };
  const tapK = roundUp(channels, kernel.step);
  const tilesM = (t: Tile) => Math.ceil(phaseM / t.rows);
  const tilesN = (t: Tile) => Math.ceil(n / t.columns);
  const count = (t: Tile) => tilesM(t) * tilesN(t) * phases;
  const tile = variant === 'tiled_small' ? kernel.tiles[kernel.tiles.length - 1]! : chooseTile(kernel, count, phaseM, n, taps * channels);
  // 64 invocations stage a block of 4x4 each.
  const stageK = tile.stageK ?? 1024 / tile.rows;
  const unit = name === 'tiled' || name === 'subgroup_matrix' ? stageK : tapK;
  // Phases have different numbers of taps, so only the whole filter is split.
  const splits = phases === 1 ? Math.min(Math.ceil((taps * tapK) / unit), Math.ceil(kernel.wanted / count(tile))) : 1;
  const sliceK = Math.ceil((taps * tapK) / unit / splits) * unit;
  const slices = Math.ceil((taps * tapK) / sliceK);
  const target = slices === 1 ? y! : temp('partial sums', [slices, ...y!.shape]);

  const byScalars = name === 'broadcast';
  const xWide = channels % 4 === 0 && !byScalars && !byRows;
  const store = n % 4 === 0 && !byScalars ? 4 : 1;
  let read: Bindable = filter;
  if (gradient && name === 'broadcast') {
    read = temp('transposed filter', [taps, d.k, d.c], filter.dtype);
    emitCopy({ dispatch, profile, variant: undefined }, { from: filter, to: read, dims: read.shape, fromStrides: [d.c * d.k, 1, d.k], toStrides: [d.c * d.k, d.c, 1] });
  }
  // tap_rows reads a transposed filter down its columns.
  const wide = !byScalars && !(gradient && name === 'tap_rows');
  const operand = weightOperand({ dtype: filter.dtype, packed: packed(filter), even: d.k % 4 === 0, wide, transposed: gradient && !byScalars });
  dispatch({
    shader: kernel.shader,
    entry: tile.entry ?? 'forward',
    prologue: {
      X: vectorType(source.dtype, xWide ? 4 : 1),
      X4: vectorType(source.dtype, 4),
      Y: vectorType(target.dtype, store),
      V: vectorType('f32', store),
      X_WIDE: xWide,
      CHANNEL_EDGE: channels % kernel.step !== 0,
      GRADIENT: gradient,
      ...(name === 'tap_rows' && { FEW_CHANNELS: channels < 24 }),
      ...(name === 'tiled' && { STAGE_K: `${stageK}u` }),
      ...tile.prologue,
      ...operand.prologue,
    },
    includes: { ...operand.includes, ...(!byScalars && { 'lib/store_row_4.wgsl': `lib/store_row_${store}.wgsl` }), ...(tile.include && { [tile8x8]: tile.include }) },
    bindings: { x: source, w: read, y: target },
    params: {
      m: d.n * yHeight * yWidth,
      n,
      channels,
      tap_k: tapK,
      height,
      width,
      y_height: yHeight,
      y_width: yWidth,
      rows,
      columns,
      phase_m: phaseM,
      taps_y: d.r,
      taps_x: d.s,
      stride: d.stride,
      pad_top: d.padding[0],
      pad_left: d.padding[2],
      tiles_m: tilesM(tile),
      tiles_n: tilesN(tile),
      slices,
      slice_k: sliceK,
      upsample: Number(d.upsample && !gradient),
    },
    workgroups: Math.ceil((count(tile) * slices) / kernel.tilesPerWorkgroup),
    ...(slices === 1 ? { epilogueWidth: store } : { cost: { flops: flops(d), bytes: source.bytes + filter.bytes + numel(target.shape) * 4 } }),
  });
  if ('temp' in target) dispatch(splitSum(target, y!, slices));
}

function winogradShape({ n, h, w, c, p, q, k, padding, upsample }: Dimensions, gradient: boolean): WinogradShape {
  const pad = [padding[0], padding[2]] as const;
  return gradient
    ? { n, from: [p, q], to: [h, w], channels: k, outputs: c, padding: [2 - pad[0], 2 - pad[1]], upsample: false, gradient }
    : { n, from: [h, w], to: [p, q], channels: c, outputs: k, padding: pad, upsample, gradient };
}

const flops = ({ n, p, q, k, c, r, s }: Dimensions): number => 2 * n * p * q * k * c * r * s;

export const conv2dOp = defineOp<ConvAttrs>({
  name: 'conv2d',
  doc: 'y[n,p,q,k] = Σ x[n, p·stride + r − top, q·stride + s − left, c] · w[r,s,c,k], zero outside the image: cross-correlation of x [N,H,W,C] with w [R,S,C,K] as [N,P,Q,K], stored as x is. With `upsample`, x is read enlarged twice (nearest).',
  infer([x, w], attrs) {
    const { n, p, q, k } = dimensions(x!.shape, w!.shape, attrs);
    return [{ shape: [n, p, q, k], dtype: x!.dtype }];
  },
  epilogueBuffers: 5,
  weightInput: () => ({ index: 1 }),
  overParts: ([x], parts, attrs) => concat(parts.map((part) => conv2d(x!, part, attrs)), -1),
  lower(ctx) {
    lowerProduct(ctx, dimensions(ctx.inputs[0]!.shape, ctx.inputs[1]!.shape, ctx.attrs), false);
  },
  variants: [...productVariants, 'tap_rows', 'winograd'],
  flops: ([x, w], _, attrs) => flops(dimensions(x!.shape, w!.shape, attrs)),
  grad({ graph, inputs: [x, w], outputGrads, attrs, needs }) {
    const dy = outputGrads[0]!;
    return [
      needs[0] ? gradInput(dy, w!, x!.shape, attrs) : undefined,
      needs[1] ? graph.add1(conv2dGradWeightOp, [x!, dy], { ...attrs, kernel: [w!.shape[0]!, w!.shape[1]!] }) : undefined,
    ];
  },
});

function gradInput(dy: Tensor, w: Tensor, shape: readonly number[], attrs: ConvAttrs): Tensor {
  const [n, h, width, c] = shape as [number, number, number, number];
  const scale = attrs.upsample ? 2 : 1;
  const dx = dy.graph.add1(conv2dGradInputOp, [dy, w], { ...attrs, upsample: false, size: [scale * h, scale * width] });
  if (!attrs.upsample) return dx;
  // Each source pixel was read as four.
  const columns = sum(reshape(dx, [n * h * 2 * width, 2, c]), [1]);
  return reshape(sum(reshape(columns, [n * h, 2, width * c]), [1]), shape);
}

interface GradInputAttrs extends ConvAttrs {
  /** Height and width of the input. */
  readonly size: readonly [number, number];
}

const gradInputDimensions = ([dy, w]: readonly TensorSpec[], attrs: GradInputAttrs): Dimensions =>
  checkGradient(dy!.shape, dimensions([dy!.shape[0]!, ...attrs.size, w!.shape[2]!], w!.shape, attrs));

function checkGradient(dy: readonly number[], d: Dimensions): Dimensions {
  const expected = [d.n, d.p, d.q, d.k];
  if (showShape(dy) !== showShape(expected)) throw new BruitError('shape', `dy is ${showShape(dy)}, the convolution's result ${showShape(expected)}`);
  return d;
}

export const conv2dGradInputOp = defineOp<GradInputAttrs>({
  name: 'conv2d_grad_input',
  doc: 'dL/dx [N,H,W,C] of conv2d from dL/dy [N,P,Q,K] and w [R,S,C,K]: each pixel gathers the results that read it. Also the transposed convolution.',
  infer(inputs, attrs) {
    const { n, h, w, c } = gradInputDimensions(inputs, attrs);
    return [{ shape: [n, h, w, c], dtype: inputs[0]!.dtype }];
  },
  epilogueBuffers: 5,
  lower(ctx) {
    lowerProduct(ctx, gradInputDimensions(ctx.inputs, ctx.attrs), true);
  },
  variants: [...productVariants, 'tap_rows', 'winograd'],
  flops: (inputs, _, attrs) => flops(gradInputDimensions(inputs, attrs)),
  grad: { notDifferentiable: 'conv2d_grad_input appears in gradients only, and gradients of gradients are not built' },
});

interface GradWeightAttrs extends ConvAttrs {
  /** Height and width of the filter. */
  readonly kernel: readonly [number, number];
}

const gradWeightDimensions = ([x, dy]: readonly TensorSpec[], attrs: GradWeightAttrs): Dimensions =>
  checkGradient(dy!.shape, dimensions(x!.shape, [...attrs.kernel, x!.shape[3]!, dy!.shape[3]!], attrs));

export const conv2dGradWeightOp = defineOp<GradWeightAttrs>({
  name: 'conv2d_grad_weight',
  doc: 'dL/dw [R,S,C,K] (f32) of conv2d from x [N,H,W,C] and dL/dy [N,P,Q,K]: image rows are summed in slices and the slices in their order, so results repeat bit for bit.',
  infer(inputs, attrs) {
    const { r, s, c, k } = gradWeightDimensions(inputs, attrs);
    return [{ shape: [r, s, c, k], dtype: 'f32' }];
  },
  epilogueBuffers: 5,
  lower({ inputs, outputs: [dw], attrs, profile, variant, temp, dispatch }) {
    const [x, dy] = inputs as [Tensor, Tensor];
    const d = gradWeightDimensions(inputs, attrs);
    const byRows = tapRowsFit(d, false) && (variant === 'tap_rows' || (variant === undefined && gradWeightTapRowsPay(d, profile)));
    const name = byRows ? 'tap_rows' : kernelFor(profile, ownVariant(variant), d.k, 9);
    const kernel = gradWeightKernels[name === 'tiled' ? 'direct' : name];
    // The direct kernel is what GPUs run, too: there a workgroup must fill their lanes.
    const lanes = kernel === gradWeightKernels.direct ? (profile.kind === 'gpu' ? 32 : 8) : undefined;
    const byScalars = name === 'broadcast';
    const tapM = roundUp(d.c, byScalars ? 8 : 4);
    const rows = d.n * d.p;
    const tilesM = (t: Tile) => Math.ceil((d.r * d.s * tapM) / t.rows);
    const tilesN = (t: Tile) => Math.ceil(d.k / t.columns);
    const count = (t: Tile) => tilesM(t) * tilesN(t);
    // The sum is split as finely as it takes to fill the adapter, so the tile needs not be small; a slice adds at most 8192 terms.
    const wanted = profile.kind === 'gpu' ? 16384 : kernel.wanted;
    const tile = chooseTile(kernel, (t) => count(t) * rows, d.r * d.s * tapM, d.k, rows * d.q);
    const splits = Math.min(rows, Math.max(Math.ceil(wanted / count(tile)), Math.ceil((rows * d.q) / 8192)));
    const sliceRows = Math.ceil(rows / splits);
    const slices = Math.ceil(rows / sliceRows);
    const target = slices === 1 ? dw! : temp('partial sums', [slices, ...dw!.shape]);
    const xWide = d.c % 4 === 0 && !byScalars;
    const store = d.k % 4 === 0 && !byScalars ? 4 : 1;
    dispatch({
      shader: kernel.shader,
      entry: tile.entry ?? 'forward',
      prologue: {
        X: vectorType(x.dtype, xWide ? 4 : 1),
        X4: vectorType(x.dtype, 4),
        D: vectorType(dy.dtype, store),
        D4: vectorType(dy.dtype, 4),
        Y: vectorType('f32', store),
        V: vectorType('f32', store),
        X_WIDE: xWide,
        D_WIDE: store === 4,
        COLUMN_EDGE: d.q % kernel.step !== 0,
      },
      includes: { ...(!byScalars && { 'lib/store_row_4.wgsl': `lib/store_row_${store}.wgsl` }) },
      bindings: { x, dy, y: target },
      params: {
        m: d.r * d.s * d.c,
        n: d.k,
        channels: d.c,
        tap_m: tapM,
        height: d.h,
        width: d.w,
        dy_height: d.p,
        dy_width: d.q,
        taps_x: d.s,
        stride: d.stride,
        pad_top: d.padding[0],
        pad_left: d.padding[2],
        tiles_m: tilesM(tile),
        tiles_n: tilesN(tile),
        slices,
        slice_rows: sliceRows,
        rows,
        upsample: Number(d.upsample),
      },
      ...(lanes && { overrides: { LANES: lanes } }),
      workgroups: Math.ceil((count(tile) * slices) / (lanes ?? kernel.tilesPerWorkgroup)),
      ...(slices === 1 ? { epilogueWidth: store } : { cost: { flops: flops(d), bytes: x.bytes + dy.bytes + numel(target.shape) * 4 } }),
    });
    if ('temp' in target) dispatch(splitSum(target, dw!, slices));
  },
  variants: ['direct', 'broadcast', 'subgroup', 'tap_rows'],
  flops: (inputs, _, attrs) => flops(gradWeightDimensions(inputs, attrs)),
  grad: { notDifferentiable: 'conv2d_grad_weight appears in gradients only, and gradients of gradients are not built' },
});

/**
 * Convolution (cross-correlation) of x [N,H,W,C] with w [R,S,C,K] as [N,P,Q,K], P = ⌊(H + top + bottom − R)/stride⌋ + 1, stored as x is.
 * Bias, activation and residual written after it are fused into its store.
 */
export function conv2d(x: Tensor, w: Tensor, { stride = 1, padding = 0, upsample = false }: Conv2dOptions = {}): Tensor {
  return x.graph.add1(conv2dOp, [x, w], { stride, padding: typeof padding === 'number' ? [padding, padding, padding, padding] : padding, upsample });
}

/** Calls `visit(x index, w index, y index)` for every product of the convolution. */
function eachProduct({ n, h, w, c, r, s, k, p, q, stride, padding, upsample }: Dimensions, visit: (x: number, w: number, y: number) => void): void {
  const shrink = upsample ? 2 : 1;
  for (let i = 0; i < n; i++) for (let oy = 0; oy < p; oy++) for (let ox = 0; ox < q; ox++) for (let fy = 0; fy < r; fy++) for (let fx = 0; fx < s; fx++) {
    const iy = oy * stride + fy - padding[0];
    const ix = ox * stride + fx - padding[2];
    if (iy < 0 || ix < 0 || iy >= h || ix >= w) continue;
    const source = ((i * (h / shrink) + Math.floor(iy / shrink)) * (w / shrink) + Math.floor(ix / shrink)) * c;
    for (let ci = 0; ci < c; ci++) for (let ki = 0; ki < k; ki++) visit(source + ci, ((fy * s + fx) * c + ci) * k + ki, ((i * p + oy) * q + ox) * k + ki);
  }
}

const f32 = (t: RefTensor): TensorSpec => ({ shape: t.shape, dtype: 'f32' });

interface Case extends Partial<ConvAttrs> {
  readonly name: string;
  readonly x: readonly [number, number, number, number];
  /** Filter height, width, and result channels. */
  readonly w: readonly [number, number, number];
  /** Too much work for finite differences. */
  readonly large?: boolean;
  /** A real layer. */
  readonly bench?: boolean;
  readonly packed?: boolean;
}

const same = [1, 1, 1, 1] as const;

/** Shapes that all three ops are tested with. */
const caseShapes: readonly Case[] = [
  { name: 'one element', x: [1, 1, 1, 1], w: [1, 1, 1] },
  { name: '3x3, padded', x: [2, 6, 5, 8], w: [3, 3, 12], padding: same, packed: true },
  { name: '3x3, prime sizes and channels', x: [2, 7, 11, 5], w: [3, 3, 7], padding: same, packed: true },
  { name: '1x1 shortcut', x: [2, 5, 3, 12], w: [1, 1, 20] },
  { name: 'RGB in', x: [2, 9, 8, 3], w: [3, 3, 16], padding: same },
  { name: 'RGB out', x: [2, 9, 8, 16], w: [3, 3, 3], padding: same },
  { name: 'grey in', x: [3, 8, 8, 1], w: [3, 3, 20], padding: same },
  { name: 'stride 2', x: [2, 8, 8, 8], w: [3, 3, 8], stride: 2, padding: same },
  { name: 'stride 2, padded below and right, as downsamplers do', x: [2, 9, 8, 4], w: [3, 3, 8], stride: 2, padding: [0, 1, 0, 1] },
  { name: 'stride 3, filter 4x2, uneven padding', x: [1, 11, 10, 6], w: [4, 2, 5], stride: 3, padding: [2, 0, 1, 3] },
  { name: 'few channels, stride 3, filter 5x2, uneven padding', x: [2, 11, 10, 3], w: [5, 2, 18], stride: 3, padding: [2, 0, 1, 3], packed: true },
  { name: 'few channels, padding beyond the filter', x: [2, 3, 4, 8], w: [2, 3, 24], padding: [3, 4, 0, 5] },
  { name: 'rows of 4, filter 2x3, uneven padding above and below', x: [2, 5, 12, 5], w: [2, 3, 11], padding: [2, 0, 1, 1], packed: true },
  { name: 'rows of 4, filter 1x3', x: [3, 1, 8, 10], w: [1, 3, 20], padding: [0, 0, 1, 1] },
  { name: 'stride beyond the filter', x: [1, 9, 9, 4], w: [2, 2, 4], stride: 4 },
  { name: 'patches of 4x4', x: [2, 8, 12, 3], w: [4, 4, 12], stride: 4 },
  { name: 'padding beyond the filter', x: [1, 3, 4, 4], w: [2, 3, 4], padding: [3, 4, 0, 5] },
  { name: '3x3, padding beyond the filter', x: [1, 3, 4, 4], w: [3, 3, 8], padding: [3, 4, 0, 5] },
  { name: '7x7', x: [1, 8, 9, 4], w: [7, 7, 8], padding: [3, 3, 3, 3] },
  { name: 'one beyond tiles', x: [1, 13, 10, 68], w: [3, 3, 65], padding: same, large: true },
  { name: 'small image, split taps', x: [1, 4, 4, 64], w: [3, 3, 64], padding: same, large: true, packed: true },
  { name: '64 tiles of 64 channels, where gradients take Winograd', x: [1, 15, 16, 64], w: [3, 3, 64], padding: same, large: true },
  { name: 'tiles of 64', x: [2, 25, 31, 4], w: [3, 3, 252], padding: same, large: true },
  { name: 'tiles of 64 in the gradient', x: [2, 25, 31, 252], w: [3, 3, 4], padding: same, large: true },
  { name: 'U-Net at 28', x: [4, 28, 28, 32], w: [3, 3, 48], padding: same, large: true, bench: true },
  { name: 'U-Net at 7', x: [16, 7, 7, 64], w: [3, 3, 64], padding: same, large: true, bench: true },
];

/** Rounding of sums of n products of normal numbers: about 6e-8·√n of their size, and the largest value is some of these. */
const toleranceOf = (terms: number): number => 3e-6 + 1.5e-7 * Math.sqrt(terms);

function cases<A extends ConvAttrs>(make: (d: Dimensions, x: readonly number[], w: readonly number[], attrs: ConvAttrs) => { shapes: readonly (readonly number[])[]; attrs: A; terms: number }, list: readonly Case[]) {
  return list.map(({ name, x, w: [r, s, k], large, bench, packed, stride = 1, padding = [0, 0, 0, 0], upsample = false }) => {
    const attrs: ConvAttrs = { stride, padding, upsample };
    const w = [r, s, x[3], k];
    const made = make(dimensions(x, w, attrs), x, w, attrs);
    return { name, inputs: made.shapes.map((shape) => ({ shape })), attrs: made.attrs, tolerance: toleranceOf(made.terms), ...(large && { skipGrad: true }), ...(bench && { bench }), ...(packed && { packed }) };
  });
}

const upsampled: readonly Case[] = [
  { name: 'upsampled', x: [2, 4, 5, 8], w: [3, 3, 4], padding: same, upsample: true, packed: true },
  { name: 'upsampled, rows of 4', x: [2, 3, 6, 9], w: [3, 3, 17], padding: same, upsample: true, packed: true },
  { name: 'upsampled, odd channels, stride 2', x: [1, 5, 3, 3], w: [3, 3, 5], padding: same, stride: 2, upsample: true },
];

export const tests = [
  opTests<ConvAttrs>({
    op: conv2dOp,
    reference([x, w], attrs) {
      const d = dimensions(x!.shape, w!.shape, attrs);
      const y = new Float64Array(d.n * d.p * d.q * d.k);
      eachProduct(d, (i, j, o) => (y[o]! += x!.data[i]! * w!.data[j]!));
      return [y];
    },
    cases: cases((d, x, w, attrs) => ({ shapes: [x, w], attrs, terms: d.r * d.s * d.c }), [...caseShapes, ...upsampled]),
  }),
  opTests<GradInputAttrs>({
    op: conv2dGradInputOp,
    reference([dy, w], attrs) {
      const d = gradInputDimensions([f32(dy!), f32(w!)], attrs);
      const dx = new Float64Array(d.n * d.h * d.w * d.c);
      eachProduct(d, (i, j, o) => (dx[i]! += dy!.data[o]! * w!.data[j]!));
      return [dx];
    },
    cases: cases((d, x, w, attrs) => ({ shapes: [[d.n, d.p, d.q, d.k], w], attrs: { ...attrs, size: [x[1]!, x[2]!] as const }, terms: d.r * d.s * d.k }), caseShapes),
  }),
  opTests<GradWeightAttrs>({
    op: conv2dGradWeightOp,
    reference([x, dy], attrs) {
      const d = gradWeightDimensions([f32(x!), f32(dy!)], attrs);
      const dw = new Float64Array(d.r * d.s * d.c * d.k);
      eachProduct(d, (i, j, o) => (dw[j]! += x!.data[i]! * dy!.data[o]!));
      return [dw];
    },
    cases: cases((d, x, w, attrs) => ({ shapes: [x, [d.n, d.p, d.q, d.k]], attrs: { ...attrs, kernel: [w[0]!, w[1]!] as const }, terms: d.n * d.p * d.q }), [...caseShapes, ...upsampled]),
  }),
];
