import gradShader from '../../../shaders/group_norm_grad.wgsl';
import forwardShader from '../../../shaders/group_norm.wgsl';
import wholeShader from '../../../shaders/group_norm_whole.wgsl';
import type { AdapterProfile } from '../device';
import { check } from '../errors';
import type { Tensor, TensorSpec } from '../graph';
import { defineOp, opTests, type OpCase } from '../op';
import { vectorType } from '../pointwise_codegen';
import { numel, sameShape, showShape, type DType } from '../shape';
import { add, expand, mul, scale, square, sub } from './pointwise';
import { reshape } from './reshape';

interface GroupNormAttrs {
  readonly groups: number;
  readonly eps: number;
  readonly silu: boolean;
}

/** Sizes of x as the kernels see it: [batch, pixels, channels]. */
const sizesOf = ({ shape }: TensorSpec, groups: number) => {
  const batch = shape[0]!;
  const channels = shape[shape.length - 1]!;
  return { batch, channels, groups, pixels: numel(shape) / (batch * channels) };
};

/** Pixels per invocation so that about `invocations` of them exist, at least `least`. */
function banding({ batch, pixels, channels }: ReturnType<typeof sizesOf>, width: number, invocations: number, least: number): { bands: number; band: number } {
  const wanted = Math.ceil(invocations / ((batch * channels) / width));
  const band = Math.min(pixels, Math.max(least, Math.ceil(pixels / wanted)));
  return { bands: Math.ceil(pixels / band), band };
}

/** Reductions. A CPU wants few, long invocations (a workgroup costs microseconds to start), a GPU tens of thousands. */
const reductionBands = (sizes: ReturnType<typeof sizesOf>, width: number, kind: AdapterProfile['kind']) => banding(sizes, width, kind === 'software' ? 1024 : 32768, 16);
/** Element-wise passes: short bands on a GPU, just long enough to pay for the loads of the group's numbers. */
const applyBands = (sizes: ReturnType<typeof sizesOf>, width: number, kind: AdapterProfile['kind']) => banding(sizes, width, kind === 'software' ? 1024 : 65536, 8);

const widthOf = (channels: number): 1 | 4 => (channels % 4 === 0 ? 4 : 1);
const lanesInclude = (width: 1 | 4) => ({ 'lib/lanes_1.wgsl': `lib/lanes_${width}.wgsl` });

/** `tiled` merges the bands with a workgroup per result instead of an invocation. */
const isTiled = (profile: AdapterProfile, variant: string | undefined) => (variant ?? (profile.kind === 'gpu' ? 'tiled' : 'direct')) === 'tiled';

const lcm = (a: number, b: number): number => {
  let m = a;
  while (m % b !== 0) m += a;
  return m;
};

/** Elements that one lane of group_norm_whole.wgsl may have to go through: beyond, workgroups would be too few and too slow. */
const wholeElements = { gpu: 128, software: Infinity } as const;
/** Most entries of its workgroup memory, four arrays of them. Software adapters clear it by code that takes them long to compile. */
const wholeCells = 256;

/**
 * How group_norm_whole.wgsl shares out `sizes`, or undefined where its workgroups cannot hold the groups, or would each have too much to do.
 * A workgroup's channels fill at least a line of memory (GPU) or a vector (CPU).
 */
function wholeGroups({ batch, channels, groups, pixels }: ReturnType<typeof sizesOf>, kind: AdapterProfile['kind'], forced: boolean) {
  const lanes = kind === 'gpu' ? 256 : 4;
  const columns = Math.min(lcm(channels / groups, kind === 'gpu' ? 8 : 4), channels);
  // On a CPU more strips than lanes: each has an origin of its own for its sums, which keeps digits.
  const strips = Math.max(1, Math.min(Math.floor((kind === 'gpu' ? lanes : 16) / columns), pixels));
  if (columns * strips > wholeCells) return undefined;
  if (!forced && (pixels * columns) / lanes > wholeElements[kind]) return undefined;
  const blocks = Math.ceil(channels / columns);
  // Fewer workgroups than a CPU has cores would leave some idle over large images.
  if (!forced && kind === 'software' && batch * blocks < 8 && pixels * channels > 2 ** 16) return undefined;
  return { lanes, cells: 2 ** Math.ceil(Math.log2(Math.max(8, columns * strips))), params: { batch, pixels, channels, groups, columns, blocks, strips }, workgroups: batch * blocks };
}

export const groupNormGradOp = defineOp<GroupNormAttrs>({
  name: 'group_norm_grad',
  doc: "(dx, dgamma, dbeta) of group_norm from (x, gamma, beta, mean, rstd, dy): with x̂ = (x−mean)·rstd and du = dy·silu'(u) (dy without SiLU), dβ = Σ du, dγ = Σ du·x̂, dx = rstd·(γ·du − mean(γ·du) − x̂·mean(γ·du·x̂)), means over the group. Fixed order of additions.",
  infer([x, gamma, beta, mean, , dy], { groups }) {
    const { batch } = sizesOf(x!, groups);
    check(sameShape(mean!.shape, [batch, groups]), 'shape', () => `mean and rstd must be ${showShape([batch, groups])}, not ${showShape(mean!.shape)}`);
    check(sameShape(x!.shape, dy!.shape), 'shape', () => `dy ${showShape(dy!.shape)} must have x's shape ${showShape(x!.shape)}`);
    return [x!, gamma!, beta!].map(({ shape, dtype }) => ({ shape, dtype }));
  },
  variants: ['direct', 'tiled'],
  lower({ inputs, outputs, attrs: { groups, silu }, profile, variant, temp, dispatch }) {
    const [x, gamma, beta, mean, rstd, dy] = inputs as [Tensor, Tensor, Tensor, Tensor, Tensor, Tensor];
    const [dx, dgamma, dbeta] = outputs as [Tensor, Tensor, Tensor];
    const sizes = sizesOf(x, groups);
    const { batch, channels } = sizes;
    const width = widthOf(channels);
    const type = (t: { dtype: DType }) => vectorType(t.dtype, width);
    const common = {
      shader: { file: 'group_norm_grad.wgsl', text: gradShader },
      prologue: { V: vectorType('f32', width), X: type(x), DY: type(dy), DX: type(dx), W: type(gamma), WS: gamma.dtype, B: type(beta), DW: dgamma.dtype, DB: dbeta.dtype, WIDTH: `${width}u`, SILU: silu },
      includes: lanesInclude(width),
    };
    const reduction = reductionBands(sizes, width, profile.kind);
    const du = temp('sum of du', [batch, reduction.bands, channels]);
    const dux = temp('sum of du·x̂', [batch, reduction.bands, channels]);
    const means = temp('group means', [batch, groups, 2]);
    dispatch({
      ...common,
      entry: 'sums',
      bindings: { x, dy, gamma, beta, mean, rstd, channel_du: du, channel_dux: dux },
      params: { ...sizes, ...reduction },
      workgroups: Math.ceil(numel(du.shape) / width / 64),
    });
    const tiled = isTiled(profile, variant);
    dispatch({
      ...common,
      entry: tiled ? 'merge_tiled' : 'merge',
      bindings: { part_du: du, part_dux: dux, scalar_gamma: gamma, group_means: means, dgamma, dbeta },
      params: { ...sizes, ...reduction },
      workgroups: tiled ? batch * groups + channels : Math.ceil((batch * groups + channels) / 64),
    });
    const elementwise = applyBands(sizes, width, profile.kind);
    dispatch({
      ...common,
      entry: 'apply',
      bindings: { x, dy, gamma, beta, mean, rstd, means, dx },
      params: { ...sizes, ...elementwise },
      workgroups: Math.ceil((batch * elementwise.bands * channels) / width / 64),
    });
  },
  flops: ([x], _, { silu }) => numel(x!.shape) * (silu ? 30 : 12),
  grad: { notDifferentiable: 'gradients of gradients are not built' },
});

export const groupNormOp = defineOp<GroupNormAttrs>({
  name: 'group_norm',
  doc: 'γ·(x − mean)/√(var + eps) + β over each image’s pixels and each group of neighbouring channels (Wu & He 2018), then SiLU if asked for. x [N,…,C] channels last, γ and β [C]; results (y, mean [N,groups], rstd [N,groups]). Statistics are f32 about a shift, so |mean| ≫ std keeps its digits.',
  infer([x, gamma, beta], { groups, eps }) {
    check(x!.shape.length >= 2, 'shape', () => `x ${showShape(x!.shape)} must be [N, …, C]`);
    const { batch, channels } = sizesOf(x!, groups);
    check(Number.isInteger(groups) && groups > 0 && channels % groups === 0, 'shape', () => `${channels} channels of x ${showShape(x!.shape)} do not split into ${groups} groups`);
    check(sameShape(gamma!.shape, [channels]) && sameShape(beta!.shape, [channels]), 'shape', () => `gamma ${showShape(gamma!.shape)} and beta ${showShape(beta!.shape)} must be [${channels}], the channels of x ${showShape(x!.shape)}`);
    check(eps > 0, 'shape', () => `eps must be positive, not ${eps}`);
    const statistics: TensorSpec = { shape: [batch, groups], dtype: 'f32' };
    return [{ shape: x!.shape, dtype: x!.dtype }, statistics, statistics];
  },
  variants: ['direct', 'tiled', 'whole'],
  // apply binds x, gamma, beta, mean, rstd and y.
  epilogueBuffers: 2,
  lower({ inputs, outputs, attrs: { groups, eps, silu }, profile, variant, temp, dispatch }) {
    const [x, gamma, beta] = inputs as [Tensor, Tensor, Tensor];
    const [y, mean, rstd] = outputs as [Tensor, Tensor, Tensor];
    const sizes = sizesOf(x, groups);
    const { batch, channels } = sizes;
    const whole = variant === undefined || variant === 'whole' ? wholeGroups(sizes, profile.kind, variant === 'whole') : undefined;
    if (whole) {
      return dispatch({
        shader: { file: 'group_norm_whole.wgsl', text: wholeShader },
        entry: 'forward',
        prologue: { V: 'f32', X: vectorType(x.dtype, 1), W: vectorType(gamma.dtype, 1), B: vectorType(beta.dtype, 1), SILU: silu, CELLS: `${whole.cells}u` },
        overrides: { LANES: whole.lanes },
        bindings: { x, gamma, beta, mean, rstd, y },
        params: { ...whole.params, eps },
        workgroups: whole.workgroups,
        epilogueWidth: 1,
      });
    }
    const width = widthOf(channels);
    const type = (t: { dtype: DType }) => vectorType(t.dtype, width);
    const common = {
      shader: { file: 'group_norm.wgsl', text: forwardShader },
      prologue: { V: vectorType('f32', width), X: type(x), W: type(gamma), B: type(beta), WIDTH: `${width}u`, SILU: silu },
      includes: lanesInclude(width),
    };
    const reduction = reductionBands(sizes, width, profile.kind);
    const partMean = temp('channel means', [batch, reduction.bands, channels]);
    const partM2 = temp('channel deviations', [batch, reduction.bands, channels]);
    const params = { ...sizes, ...reduction, eps };
    dispatch({ ...common, entry: 'stats', bindings: { x, channel_mean: partMean, channel_m2: partM2 }, params, workgroups: Math.ceil(numel(partMean.shape) / width / 64) });
    const tiled = isTiled(profile, variant);
    dispatch({
      ...common,
      entry: tiled ? 'merge_tiled' : 'merge',
      bindings: { part_mean: partMean, part_m2: partM2, mean, rstd },
      params,
      workgroups: tiled ? batch * groups : Math.ceil((batch * groups) / 64),
    });
    const elementwise = applyBands(sizes, width, profile.kind);
    dispatch({
      ...common,
      entry: 'apply',
      bindings: { x, gamma, beta, group_mean: mean, group_rstd: rstd, y },
      params: { ...sizes, ...elementwise, eps },
      workgroups: Math.ceil((batch * elementwise.bands * channels) / width / 64),
      epilogueWidth: width,
    });
  },
  flops: ([x], _, { silu }) => numel(x!.shape) * (silu ? 12 : 7),
  grad({ graph, inputs, outputs, outputGrads, attrs }) {
    const [x, gamma, beta] = inputs as [Tensor, Tensor, Tensor];
    const [, mean, rstd] = outputs as [Tensor, Tensor, Tensor];
    const [dy, dmean, drstd] = outputGrads;
    const [dxOfY, dgamma, dbeta] = dy ? graph.add(groupNormGradOp, [x, gamma, beta, mean, rstd, dy], attrs) : [];
    let dx = dxOfY;
    // Only where a loss looks at the statistics themselves: dmean/dx = 1/M, drstd/dx = −rstd²·x̂/M.
    if (dmean || drstd) {
      const { batch, pixels, channels, groups } = sizesOf(x, attrs.groups);
      const split = (t: Tensor) => reshape(t, [batch, 1, groups, 1]);
      const xs = reshape(x, [batch, pixels, groups, channels / groups]);
      const elements = pixels * (channels / groups);
      const extra = [
        ...(dmean ? [expand(split(dmean), xs.shape, 1 / elements)] : []),
        ...(drstd ? [scale(mul(mul(sub(xs, split(mean)), split(rstd)), split(mul(drstd, square(rstd)))), -1 / elements)] : []),
      ].reduce(add);
      dx = dx ? add(dx, reshape(extra, x.shape)) : reshape(extra, x.shape);
    }
    return [dx, dgamma, dbeta];
  },
});

/** GroupNorm over groups of channels of `x` [N,…,C] (channels last) with `gamma` and `beta` [C]; `silu` applies SiLU to the result. */
export function groupNorm(x: Tensor, gamma: Tensor, beta: Tensor, { groups, eps = 1e-5, silu = false }: { groups: number; eps?: number; silu?: boolean }): Tensor {
  return x.graph.add(groupNormOp, [x, gamma, beta], { groups, eps, silu })[0]!;
}

const sigmoid = (x: number) => 1 / (1 + Math.exp(-x));

/** Mean and rstd of each (image, group), two passes in float64. */
function referenceStatistics({ shape, data }: { shape: readonly number[]; data: Float64Array }, { groups, eps }: GroupNormAttrs) {
  const { batch, pixels, channels } = sizesOf({ shape, dtype: 'f32' }, groups);
  const size = channels / groups;
  const mean = new Float64Array(batch * groups);
  const rstd = new Float64Array(batch * groups);
  const groupOf = (e: number) => Math.floor(e / (pixels * channels)) * groups + Math.floor((e % channels) / size);
  data.forEach((v, e) => (mean[groupOf(e)]! += v / (pixels * size)));
  data.forEach((v, e) => (rstd[groupOf(e)]! += (v - mean[groupOf(e)]!) ** 2 / (pixels * size)));
  rstd.forEach((v, k) => (rstd[k] = 1 / Math.sqrt(v + eps)));
  return { mean, rstd, groupOf, channels, elements: pixels * size };
}

const attrs = (groups: number, silu = false, eps = 1e-5): GroupNormAttrs => ({ groups, eps, silu });
const forwardCase = (name: string, shape: number[], a: GroupNormAttrs, more: Partial<OpCase<GroupNormAttrs>> = {}): OpCase<GroupNormAttrs> => {
  const c = shape[shape.length - 1]!;
  return { name, inputs: [{ shape }, { shape: [c] }, { shape: [c] }], attrs: a, ...more };
};
const gradCase = (name: string, shape: number[], a: GroupNormAttrs, more: Partial<OpCase<GroupNormAttrs>> = {}): OpCase<GroupNormAttrs> => {
  const c = shape[shape.length - 1]!;
  const statistics = [shape[0]!, a.groups];
  return { name, inputs: [{ shape }, { shape: [c] }, { shape: [c] }, { shape: statistics, dtype: 'f32' }, { shape: statistics, dtype: 'f32', fill: 'positive' }, { shape }], attrs: a, ...more };
};
/** x with a large mean; the rounding of the mean to f32 alone moves x̂ by 2⁻²⁴·|mean|/std. */
const offsetInputs = (shape: number[], mean: number, std: number): OpCase['inputs'] => [{ shape, fill: { mean, std } }, { shape: [shape[shape.length - 1]!] }, { shape: [shape[shape.length - 1]!] }];

export const tests = [
  opTests<GroupNormAttrs>({
    op: groupNormOp,
    reference([x, gamma, beta], a) {
      const { mean, rstd, groupOf, channels } = referenceStatistics(x!, a);
      const y = x!.data.map((v, e) => {
        const u = (v - mean[groupOf(e)]!) * rstd[groupOf(e)]! * gamma!.data[e % channels]! + beta!.data[e % channels]!;
        return a.silu ? u * sigmoid(u) : u;
      });
      return [y, mean, rstd];
    },
    cases: [
      forwardCase('three channels a group in vec4', [2, 5, 3, 12], attrs(4), { tolerance: 1e-5 }),
      forwardCase('odd channels, SiLU', [2, 7, 15], attrs(5, true), { tolerance: 1e-5 }),
      forwardCase('one channel a group', [3, 6, 5, 8], attrs(8, true), { tolerance: 1e-5 }),
      forwardCase('one group', [2, 4, 4, 6], attrs(1), { tolerance: 1e-5 }),
      forwardCase('no pixels but one', [4, 20], attrs(5), { tolerance: 1e-5 }),
      // 17 and 1021 pixels: the last band is shorter than the others.
      forwardCase('one pixel more than a band', [1, 17, 8], attrs(2, true), { tolerance: 1e-5 }),
      forwardCase('prime number of pixels, many bands', [1, 1021, 4], attrs(2, true), { tolerance: 1e-5, skipGrad: true }),
      { name: 'mean a thousand deviations off zero', inputs: offsetInputs([2, 33, 31, 16], 1000, 1), attrs: attrs(4), tolerance: 1e-4, skipGrad: true },
      { name: 'mean ten thousand deviations off zero', inputs: offsetInputs([1, 65, 8], 10000, 1), attrs: attrs(2), tolerance: 5e-4, skipGrad: true },
      { name: 'sum of squares beyond f16', inputs: offsetInputs([1, 64, 64, 8], 500, 100), attrs: attrs(2), tolerance: 1e-5, skipGrad: true },
      forwardCase('no variance', [1, 9, 4], attrs(2), { inputs: [{ shape: [1, 9, 4], fill: { mean: 3, std: 0 } }, { shape: [4] }, { shape: [4] }], skipGrad: true }),
      forwardCase('U-Net at 32×32, SiLU', [4, 32, 32, 128], attrs(32, true), { tolerance: 1e-5, skipGrad: true, bench: true }),
      forwardCase('U-Net at 28×28', [32, 28, 28, 32], attrs(8, true), { tolerance: 1e-5, skipGrad: true, bench: true }),
      forwardCase('U-Net at 14×14', [32, 14, 14, 64], attrs(8, true), { tolerance: 1e-5, skipGrad: true, bench: true }),
      forwardCase('U-Net at 7×7', [32, 7, 7, 128], attrs(8, true), { tolerance: 1e-5, skipGrad: true, bench: true }),
    ],
  }),
  opTests<GroupNormAttrs>({
    op: groupNormGradOp,
    reference([x, gamma, beta, mean, rstd, dy], a) {
      const { groupOf, channels, elements } = referenceStatistics(x!, a);
      const xh = x!.data.map((v, e) => (v - mean!.data[groupOf(e)]!) * rstd!.data[groupOf(e)]!);
      const du = dy!.data.map((v, e) => {
        const u = xh[e]! * gamma!.data[e % channels]! + beta!.data[e % channels]!;
        return a.silu ? v * sigmoid(u) * (1 + u * (1 - sigmoid(u))) : v;
      });
      const dgamma = new Float64Array(channels);
      const dbeta = new Float64Array(channels);
      const first = new Float64Array(mean!.data.length);
      const second = new Float64Array(mean!.data.length);
      du.forEach((v, e) => {
        const c = e % channels;
        dbeta[c]! += v;
        dgamma[c]! += v * xh[e]!;
        first[groupOf(e)]! += (v * gamma!.data[c]!) / elements;
        second[groupOf(e)]! += (v * gamma!.data[c]! * xh[e]!) / elements;
      });
      const dx = du.map((v, e) => rstd!.data[groupOf(e)]! * (v * gamma!.data[e % channels]! - first[groupOf(e)]! - xh[e]! * second[groupOf(e)]!));
      return [dx, dgamma, dbeta];
    },
    cases: [
      gradCase('three channels a group in vec4, SiLU', [2, 5, 3, 12], attrs(4, true), { tolerance: 1e-5 }),
      gradCase('odd channels', [2, 7, 15], attrs(5), { tolerance: 1e-5 }),
      gradCase('one pixel', [3, 8], attrs(8, true), { tolerance: 1e-5 }),
      gradCase('prime number of pixels, many bands', [1, 1021, 4], attrs(2, true), { tolerance: 1e-5 }),
      gradCase('U-Net at 32×32, SiLU', [4, 32, 32, 128], attrs(32, true), { tolerance: 1e-5, bench: true }),
      gradCase('U-Net at 28×28', [32, 28, 28, 32], attrs(8, true), { tolerance: 1e-5, bench: true }),
      gradCase('U-Net at 14×14', [32, 14, 14, 64], attrs(8, true), { tolerance: 1e-5, bench: true }),
      gradCase('U-Net at 7×7', [32, 7, 7, 128], attrs(8, true), { tolerance: 1e-5, bench: true }),
    ],
  }),
];
