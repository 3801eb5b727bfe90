/**
 * Scaled dot-product attention without a matrix of scores in memory, and its gradients.
 *
 * The forward kernel keeps the log-sum of each query row; the gradients compute the probabilities again from it. Each op has the kernels
 * `direct` (registers only, for software adapters), `broadcast` (the same for subgroups of 4 lanes) and `tiled` (workgroup memory, for GPUs).
 */
import attentionShader from '../../../shaders/attention.wgsl';
import twoBlocksShader from '../../../shaders/attention_two_blocks.wgsl';
import broadcastShader from '../../../shaders/attention_broadcast.wgsl';
import gradShader from '../../../shaders/attention_grad.wgsl';
import gradBroadcastShader from '../../../shaders/attention_grad_broadcast.wgsl';
import gradTiledShader from '../../../shaders/attention_grad_tiled.wgsl';
import gradMaskShader from '../../../shaders/attention_grad_mask.wgsl';
import statsShader from '../../../shaders/attention_stats.wgsl';
import tiledShader from '../../../shaders/attention_tiled.wgsl';
import type { AdapterProfile } from '../device';
import { BruitError } from '../errors';
import type { Tensor, TensorSpec } from '../graph';
import { defineOp, opTests, type Bindable, type LowerContext, type OpCase, type OpTests, type RefTensor } from '../op';
import { vectorType } from '../pointwise_codegen';
import type { ShaderSource } from '../shader';
import { broadcastStrides, numel, sameShape, showShape, type DType, type Shape } from '../shape';
import { cast, expand } from './pointwise';
import { kernelFor } from './product_kernel';

export interface AttentionAttrs {
  readonly heads: number;
  /** Factor on q·k. */
  readonly scale: number;
  /** Query t sees keys 0…t only. */
  readonly causal: boolean;
}

/** WGSL grants 8 KiB of variables; accumulators of four rows take 64 bytes for every four channels, and attention_two_blocks.wgsl has eight. */
const maxHead = 256;
/** Query rows (or keys) of a direct kernel's workgroup: eight lanes of four. */
const directRows = 32;
const tiledRows = 16;
const broadcastRows = 8;

const forwardShaders = {
  broadcast: { file: 'attention_broadcast.wgsl', text: broadcastShader },
  direct: { file: 'attention.wgsl', text: attentionShader },
  two_blocks: { file: 'attention_two_blocks.wgsl', text: twoBlocksShader },
  tiled: { file: 'attention_tiled.wgsl', text: tiledShader },
};
const gradShaders = {
  broadcast: { file: 'attention_grad_broadcast.wgsl', text: gradBroadcastShader },
  direct: { file: 'attention_grad.wgsl', text: gradShader },
  tiled: { file: 'attention_grad_tiled.wgsl', text: gradTiledShader },
};

interface Dims {
  readonly b: number;
  readonly t: number;
  readonly m: number;
  readonly head: number;
  readonly head4: number;
  readonly wide: boolean;
}

function dimsOf(q: TensorSpec, k: TensorSpec, heads: number): Dims {
  const head = q.shape[2]! / heads;
  return { b: q.shape[0]!, t: q.shape[1]!, m: k.shape[1]!, head, head4: Math.ceil(head / 4), wide: head % 4 === 0 };
}

function checkOperands([q, k, v, mask]: readonly (TensorSpec | undefined)[], { heads }: AttentionAttrs): void {
  const shapes = `q ${showShape(q!.shape)}, k ${showShape(k!.shape)}, v ${showShape(v!.shape)}`;
  const [b, t, c] = q!.shape;
  if (q!.shape.length !== 3 || k!.shape.length !== 3 || !sameShape(k!.shape, v!.shape) || k!.shape[0] !== b || k!.shape[2] !== c) {
    throw new BruitError('shape', `${shapes} must be [B,T,heads·D], [B,M,heads·D], [B,M,heads·D]`);
  }
  if (c! % heads !== 0) throw new BruitError('shape', `${c} channels do not divide into ${heads} heads`);
  if (c! / heads > maxHead) throw new BruitError('shape', `heads of ${c! / heads} channels; at most ${maxHead} are supported (build larger ones from matmul and softmax)`);
  if (k!.dtype !== q!.dtype || v!.dtype !== q!.dtype) throw new BruitError('shape', `q, k and v must be stored alike, not as ${q!.dtype}, ${k!.dtype}, ${v!.dtype}`);
  if (!mask) return;
  const scores = [b!, heads, t!, k!.shape[1]!];
  const lead = scores.length - mask.shape.length;
  if (lead < 0 || mask.shape.some((d, i) => d !== 1 && d !== scores[lead + i])) throw new BruitError('shape', `mask ${showShape(mask.shape)} does not broadcast to scores ${showShape(scores)}`);
}

/** Prologue, includes and params that all kernels over scores share. */
function scoreKernel(q: Tensor, k: Tensor, mask: Tensor | undefined, { heads, scale, causal }: AttentionAttrs) {
  const dims = dimsOf(q, k, heads);
  const { b, t, m, head, head4, wide } = dims;
  const width = wide ? 4 : 1;
  const st = mask ? broadcastStrides(mask.shape, [b, heads, t, m]) : [0, 0, 0, 0];
  return {
    dims,
    prologue: { X: vectorType(q.dtype, width), X4: vectorType(q.dtype, 4), MASK: mask?.dtype ?? 'f32', WIDE: wide, CAUSAL: causal },
    includes: mask ? { 'lib/attention_no_mask.wgsl': 'lib/attention_mask.wgsl' } : {},
    params: { batch: b, t, m, heads, head, head4, tiles: 1, mask_b: st[0]!, mask_h: st[1]!, mask_t: st[2]!, mask_m: st[3]!, scale },
  };
}

interface RowKernel {
  readonly direct: ShaderSource;
  /** As `direct`, for short vectors and no subgroups. */
  readonly two_blocks?: ShaderSource;
  /** For subgroups of 4 lanes. */
  readonly broadcast: ShaderSource;
  readonly tiled: ShaderSource;
  readonly entry: string;
  readonly bindings: Readonly<Record<string, Bindable>>;
  /** Query rows or keys that workgroups share out. */
  readonly rows: number;
  /** Largest D/4 at which a direct kernel keeps its own rows in registers. */
  readonly resident: number;
  /** Channels/4 of a slice where a direct kernel works on slices of heads. */
  readonly slice?: number;
}

/** Rows of attention_two_blocks.wgsl's workgroup: eight of each lane, of eight lanes where that leaves few empty. */
const twoBlockLanes = (rows: number): number => (rows % 64 > 0 && rows % 64 <= 32 ? 4 : 8);

/** That kernel where it is forced, or the fastest: where a software adapter offers no subgroups to pass operands round. */
const twoBlocksOf = (shader: ShaderSource | undefined, { kind, subgroupSize }: AdapterProfile, variant: string | undefined): ShaderSource | undefined =>
  variant === 'two_blocks' || (variant === undefined && kind === 'software' && subgroupSize === undefined) ? shader : undefined;

/** Array sizes in steps, so that heads of similar size share a pipeline. */
const roomFor = (head4: number): number => (head4 <= 2 ? 2 : head4 <= 4 ? 4 : Math.ceil(head4 / 8) * 8);

/** Emits a kernel of attention*.wgsl or attention_grad*.wgsl: one workgroup for each tile of `rows` of a head (and each slice of it). */
function dispatchRows({ dispatch, attrs, profile, variant }: LowerContext<AttentionAttrs>, { direct, two_blocks, broadcast, tiled, entry, bindings, rows, resident, slice }: RowKernel): void {
  const { dims, prologue, includes, params } = scoreKernel(bindings.q as Tensor, bindings.k as Tensor, bindings.mask as Tensor | undefined, attrs);
  const { head4, wide } = dims;
  const two = twoBlocksOf(two_blocks, profile, variant);
  const name = kernelFor(profile, variant === 'two_blocks' ? undefined : variant, Infinity, 0);
  const kernel = two ?? (name === 'tiled' ? tiled : name === 'broadcast' ? broadcast : direct);
  const tiles = Math.ceil(rows / (kernel === tiled ? tiledRows : kernel === broadcast ? broadcastRows : two ? 8 * twoBlockLanes(rows) : directRows));
  const count = dims.b * params.heads * tiles * (slice && kernel === direct ? Math.ceil(head4 / slice) : 1);
  const keep = head4 <= resident;
  const own =
    kernel === tiled
      ? { BLOCKS: `${Math.ceil(head4 / 16)}u` }
      : kernel === broadcast
        ? { HEAD: `${Math.ceil(head4 / 4) * 16}u` }
        : two
          ? { HEAD4: `${roomFor(head4)}u` }
          : { HEAD4: `${roomFor(head4)}u`, RESIDENT: keep, RESIDENT4: `${keep ? roomFor(head4) : 1}u`, ...(slice && { SLICE4: `${slice}u` }) };
  const scalars = kernel === broadcast;
  dispatch({
    shader: kernel,
    entry,
    prologue: { ...prologue, ...(scalars && { X: vectorType((bindings.q as Tensor).dtype, 1) }), V: wide && !scalars ? 'vec4<f32>' : 'f32', ...own },
    includes: { ...includes, ...(!scalars && laneIncludes(wide)) },
    bindings,
    ...(two && { overrides: { LANES: twoBlockLanes(rows) } }),
    params: { ...params, tiles, count },
    workgroups: count,
  });
}

const laneIncludes = (wide: boolean): Record<string, string> => (wide ? {} : { 'lib/lanes_4.wgsl': 'lib/lanes_1.wgsl' });

/** Pairs (query, key) that are computed. */
const pairs = (q: TensorSpec, k: TensorSpec, { heads, causal }: AttentionAttrs): number => {
  const { b, t, m } = dimsOf(q, k, heads);
  const seen = causal ? Array.from({ length: t }, (_, i) => Math.min(i + 1, m)).reduce((n, x) => n + x, 0) : t * m;
  return b * heads * seen;
};
const headOf = (q: TensorSpec, { heads }: AttentionAttrs): number => q.shape[2]! / heads;

export const attentionOp = defineOp<AttentionAttrs>({
  name: 'attention',
  doc: 'softmax(scale·q·kᵀ + mask)·v for each head (Vaswani et al. 2017) by online softmax (Dao et al. 2022). q [B,T,heads·D], k and v [B,M,heads·D], mask broadcastable to [B,heads,T,M]; results [B,T,heads·D] and the log-sum of each row [B,heads,T]. A row whose mask is below −1e37 everywhere gives zeros.',
  infer(inputs, attrs) {
    checkOperands(inputs, attrs);
    const [q] = inputs;
    return [
      { shape: q!.shape, dtype: q!.dtype },
      { shape: [q!.shape[0]!, attrs.heads, q!.shape[1]!], dtype: 'f32' },
    ];
  },
  variants: ['direct', 'two_blocks', 'broadcast', 'tiled'],
  lower(ctx) {
    const [q, k, v, mask] = ctx.inputs;
    const [o, lse] = ctx.outputs;
    dispatchRows(ctx, { ...forwardShaders, entry: 'forward', bindings: { q: q!, k: k!, v: v!, o: o!, lse: lse!, ...(mask && { mask }) }, rows: q!.shape[1]!, resident: 32 });
  },
  flops: ([q, k], _, attrs) => pairs(q!, k!, attrs) * (4 * headOf(q!, attrs) + 4),
  grad({ graph, inputs: [q, k, v, mask], outputs: [o, lse], outputGrads: [dout, dlse], attrs, needs }) {
    const full = cast(dout ?? expand(graph.constant('zero', [1], new Float32Array(1)), o!.shape), o!.dtype as 'f32' | 'f16');
    const stats = graph.add1(attentionStatsOp, [o!, full, lse!, ...(dlse ? [dlse] : [])], { heads: attrs.heads });
    const operands = [q!, k!, v!, full, stats, ...(mask ? [mask] : [])];
    const dq = needs[0] ? graph.add1(attentionGradQOp, operands, attrs) : undefined;
    const [dk, dv] = needs[1] || needs[2] ? graph.add(attentionGradKvOp, operands, attrs) : [];
    const dmask = needs[3] ? graph.add1(attentionGradMaskOp, operands, attrs) : undefined;
    return [dq, dk, dv, dmask];
  },
});

export const attentionStatsOp = defineOp<{ readonly heads: number }>({
  name: 'attention_stats',
  doc: 'lse·log2(e) and δ = Σ dO∘O − dlse of each query row, [B,heads,T,2], from o and dO [B,T,heads·D], lse and (if given) dlse [B,heads,T]: what the gradient kernels of attention read.',
  infer([, , lse]) {
    return [{ shape: [...lse!.shape, 2], dtype: 'f32' }];
  },
  lower({ inputs: [o, dout, lse, dlse], outputs: [stats], attrs: { heads }, dispatch }) {
    const head = o!.shape[2]! / heads;
    const wide = head % 4 === 0;
    const count = numel(lse!.shape);
    dispatch({
      shader: { file: 'attention_stats.wgsl', text: statsShader },
      entry: dlse ? 'forward_with_dlse' : 'forward',
      prologue: { V: vectorType('f32', wide ? 4 : 1), X: vectorType(o!.dtype, wide ? 4 : 1) },
      includes: laneIncludes(wide),
      bindings: { o: o!, dout: dout!, lse: lse!, stats: stats!, ...(dlse && { dlse }) },
      params: { t: o!.shape[1]!, heads, head: wide ? head / 4 : head, count },
      workgroups: Math.ceil(count / 64),
    });
  },
  flops: ([o]) => 2 * numel(o!.shape),
  grad: { notDifferentiable: 'it appears in gradients only, and gradients of gradients are not built' },
});

const gradDoc = 'from q, k, v, dO and the statistics of attention_stats, with the mask last if there is one (Dao et al. 2022, algorithm 4)';

export const attentionGradQOp = defineOp<AttentionAttrs>({
  name: 'attention_grad_q',
  doc: `dL/dq of attention ${gradDoc}.`,
  infer([q]) {
    return [{ shape: q!.shape, dtype: q!.dtype }];
  },
  variants: ['direct', 'broadcast', 'tiled'],
  lower(ctx) {
    const [q, k, v, dout, stats, mask] = ctx.inputs;
    const bindings = { q: q!, k: k!, v: v!, dout: dout!, stats: stats!, dq: ctx.outputs[0]!, ...(mask && { mask }) };
    dispatchRows(ctx, { ...gradShaders, entry: 'grad_q', bindings, rows: q!.shape[1]!, resident: 32 });
  },
  flops: ([q, k], _, attrs) => pairs(q!, k!, attrs) * (6 * headOf(q!, attrs) + 5),
  grad: { notDifferentiable: 'it appears in gradients only, and gradients of gradients are not built' },
});

export const attentionGradKvOp = defineOp<AttentionAttrs>({
  name: 'attention_grad_kv',
  doc: `dL/dk and dL/dv of attention ${gradDoc}.`,
  infer([, k]) {
    return [
      { shape: k!.shape, dtype: k!.dtype },
      { shape: k!.shape, dtype: k!.dtype },
    ];
  },
  variants: ['direct', 'broadcast', 'tiled'],
  lower(ctx) {
    const [q, k, v, dout, stats, mask] = ctx.inputs;
    const bindings = { q: q!, k: k!, v: v!, dout: dout!, stats: stats!, dk: ctx.outputs[0]!, dv: ctx.outputs[1]!, ...(mask && { mask }) };
    const { head4 } = dimsOf(q!, k!, ctx.attrs.heads);
    dispatchRows(ctx, { ...gradShaders, entry: 'grad_kv', bindings, rows: k!.shape[1]!, resident: 24, slice: Math.min(roomFor(head4), 32) });
  },
  flops: ([q, k], _, attrs) => pairs(q!, k!, attrs) * (8 * headOf(q!, attrs) + 5),
  grad: { notDifferentiable: 'it appears in gradients only, and gradients of gradients are not built' },
});

export const attentionGradMaskOp = defineOp<AttentionAttrs>({
  name: 'attention_grad_mask',
  doc: `dL/dmask of attention ${gradDoc}, summed over the dimensions along which it was broadcast.`,
  infer(inputs) {
    const mask = inputs[5]!;
    return [{ shape: mask.shape, dtype: mask.dtype }];
  },
  lower({ inputs: [q, k, v, dout, stats, mask], outputs: [dmask], attrs, dispatch }) {
    const { prologue, includes, params } = scoreKernel(q!, k!, mask, attrs);
    const count = numel(mask!.shape);
    dispatch({
      shader: { file: 'attention_grad_mask.wgsl', text: gradMaskShader },
      entry: 'grad_mask',
      prologue,
      includes,
      bindings: { q: q!, k: k!, v: v!, dout: dout!, stats: stats!, mask: mask!, dmask: dmask! },
      params: { ...params, count },
      workgroups: Math.ceil(count / 64),
    });
  },
  flops: ([q, k], _, attrs) => pairs(q!, k!, attrs) * (4 * headOf(q!, attrs) + 5),
  grad: { notDifferentiable: 'it appears in gradients only, and gradients of gradients are not built' },
});

export interface AttentionOptions {
  readonly heads: number;
  /** Factor on q·k; 1/√D by default. T5 uses 1. */
  readonly scale?: number;
  /** Added to the scores: [B or 1, heads or 1, T or 1, M or 1]. Values below −1e37 (−3e38, say) remove a key; never −∞. */
  readonly mask?: Tensor;
  /** Query t sees keys 0…t only. */
  readonly causal?: boolean;
}

/** softmax(scale·q·kᵀ + mask)·v in each head: q [B,T,heads·D], k and v [B,M,heads·D] → [B,T,heads·D]; D up to 256. */
export function attention(q: Tensor, k: Tensor, v: Tensor, { heads, scale, mask, causal = false }: AttentionOptions): Tensor {
  const factor = scale ?? 1 / Math.sqrt(q.shape[q.shape.length - 1]! / heads);
  return q.graph.add(attentionOp, [q, k, v, ...(mask ? [mask] : [])], { heads, scale: factor, causal })[0]!;
}

/** Calls `visit` for each head's pair of query t and key j with its score; offsets are those of the head in the row. */
function eachPair(q: RefTensor, k: RefTensor, mask: RefTensor | undefined, { heads, scale, causal }: AttentionAttrs, visit: (row: number, t: number, j: number, atQ: number, atK: number, score: number, atMask: number) => void): void {
  const { b: batch, t: rows, m, head } = dimsOf({ ...q, dtype: 'f32' }, { ...k, dtype: 'f32' }, heads);
  const st = mask ? broadcastStrides(mask.shape, [batch, heads, rows, m]) : [0, 0, 0, 0];
  for (let b = 0; b < batch; b++) {
    for (let h = 0; h < heads; h++) {
      for (let t = 0; t < rows; t++) {
        const atQ = ((b * rows + t) * heads + h) * head;
        for (let j = 0; j < (causal ? Math.min(m, t + 1) : m); j++) {
          const atK = ((b * m + j) * heads + h) * head;
          let score = 0;
          for (let d = 0; d < head; d++) score += q.data[atQ + d]! * k.data[atK + d]!;
          const atMask = b * st[0]! + h * st[1]! + t * st[2]! + j * st[3]!;
          visit((b * heads + h) * rows + t, t, j, atQ, atK, score * scale + (mask ? mask.data[atMask]! : 0), atMask);
        }
      }
    }
  }
}

function referenceForward([q, k, v, mask]: readonly RefTensor[], attrs: AttentionAttrs): Float64Array[] {
  const head = q!.shape[2]! / attrs.heads;
  const rows = q!.shape[0]! * attrs.heads * q!.shape[1]!;
  const top = new Float64Array(rows).fill(-Infinity);
  const sum = new Float64Array(rows);
  const o = new Float64Array(q!.data.length);
  eachPair(q!, k!, mask, attrs, (row, _t, _j, _q, _k, s) => (top[row] = Math.max(top[row]!, s)));
  const empty = top.map((x) => (x < -1e37 ? 0 : 1));
  eachPair(q!, k!, mask, attrs, (row, _t, _j, _q, _k, s) => (sum[row]! += Math.exp(s - top[row]!)));
  eachPair(q!, k!, mask, attrs, (row, _t, _j, atQ, atK, s) => {
    const p = (empty[row]! * Math.exp(s - top[row]!)) / sum[row]!;
    for (let d = 0; d < head; d++) o[atQ + d]! += p * v!.data[atK + d]!;
  });
  return [o, sum.map((l, i) => (empty[i] ? top[i]! + Math.log(l) : 0))];
}

/** dq, dk, dv and dmask by their formulas. */
function referenceGradients([q, k, v, dout, stats, mask]: readonly RefTensor[], attrs: AttentionAttrs): [Float64Array, Float64Array, Float64Array, Float64Array] {
  const head = q!.shape[2]! / attrs.heads;
  const dq = new Float64Array(q!.data.length);
  const dk = new Float64Array(k!.data.length);
  const dv = new Float64Array(k!.data.length);
  const dmask = new Float64Array(mask?.data.length ?? 0);
  eachPair(q!, k!, mask, attrs, (row, _t, _j, atQ, atK, s, atMask) => {
    const p = 2 ** (s * Math.LOG2E - stats!.data[2 * row]!);
    let dp = 0;
    for (let d = 0; d < head; d++) dp += dout!.data[atQ + d]! * v!.data[atK + d]!;
    const ds = p * (dp - stats!.data[2 * row + 1]!);
    if (mask) dmask[atMask]! += ds;
    for (let d = 0; d < head; d++) {
      dq[atQ + d]! += attrs.scale * ds * k!.data[atK + d]!;
      dk[atK + d]! += attrs.scale * ds * q!.data[atQ + d]!;
      dv[atK + d]! += p * dout!.data[atQ + d]!;
    }
  });
  return [dq, dk, dv, dmask];
}

interface CaseOptions {
  mask?: Shape;
  masked?: readonly number[];
  causal?: boolean;
  scale?: number;
  skipGrad?: boolean;
  bench?: boolean;
  /** Mean of the rows' log-sums that gradient ops are given: of the size of the scores, or probabilities are so far above 1 that f16 ends before them. */
  logSum?: number;
}

/** A case of the forward op, and with `forGrad` the same of a gradient op. */
function caseOf(name: string, b: number, heads: number, t: number, m: number, head: number, { mask, masked, causal = false, scale = 1 / Math.sqrt(head), logSum = 2, ...rest }: CaseOptions, forGrad: boolean): OpCase<AttentionAttrs> {
  const maskInput = mask ? [{ shape: mask, dtype: 'f32' as DType, ...(masked && { fill: { values: masked } }) }] : [];
  const rows = { shape: [b, t, heads * head] };
  const keys = { shape: [b, m, heads * head] };
  return {
    name,
    inputs: [rows, keys, keys, ...(forGrad ? [rows, { shape: [b, heads, t, 2], dtype: 'f32' as DType, fill: { mean: logSum, std: 1 } }] : []), ...maskInput],
    attrs: { heads, scale, causal },
    // Scores are sums of `head` products with an error of their own that exp magnifies.
    tolerance: 1e-5,
    ...rest,
  };
}

const casesOf = (forGrad: boolean): OpCase<AttentionAttrs>[] => {
  const make = (name: string, b: number, heads: number, t: number, m: number, head: number, options: CaseOptions = {}) => caseOf(name, b, heads, t, m, head, options, forGrad);
  return [
    make('one of everything', 1, 1, 1, 1, 1),
    make('odd head of 3, cross', 2, 2, 5, 7, 3),
    make('head of 8, primes', 2, 3, 37, 41, 8),
    make('one row more than a tile, one key fewer than a chunk', 1, 2, 33, 7, 16),
    make('causal, more rows than keys', 1, 2, 45, 19, 4, { causal: true }),
    make('causal, more keys than rows', 2, 1, 35, 70, 12, { causal: true }),
    make('relative position bias', 2, 3, 18, 18, 8, { mask: [1, 3, 18, 18], scale: 1, logSum: 8 }),
    make('padding mask', 3, 2, 9, 10, 8, { mask: [3, 1, 1, 10] }),
    make('mask of one row for all', 2, 2, 6, 5, 5, { mask: [5] }),
    make('keys and whole rows masked out', 1, 2, 6, 4, 8, { mask: [1, 1, 6, 4], masked: [0, -3e38, 0.5, -3e38, -3e38, -3e38, -3e38, -3e38] }),
    make('head of 40 (Stable Diffusion), 77 keys', 1, 2, 34, 77, 40, { skipGrad: true }),
    make('head of 160', 1, 1, 21, 17, 160, { skipGrad: true }),
    make('head of 255', 1, 1, 6, 9, 255, { skipGrad: true }),
    make('head of 256', 1, 1, 66, 67, 256, { skipGrad: true }),
    make('U-Net mid block, 4 heads of 24', 32, 4, 49, 49, 24, { skipGrad: true, bench: true }),
    make('U-Net mid block, 1 head of 96', 32, 1, 49, 49, 96, { skipGrad: true, bench: true }),
    make('196 tokens, 64 channels', 2, 1, 196, 196, 64, { skipGrad: true, bench: true }),
    make('256 tokens, 8 heads of 64', 1, 8, 256, 256, 64, { skipGrad: true, bench: true }),
  ];
};

const gradCases = casesOf(true);

export const tests: OpTests<never>[] = [
  opTests<AttentionAttrs>({ op: attentionOp, reference: referenceForward, cases: casesOf(false) }),
  opTests<AttentionAttrs>({ op: attentionGradQOp, reference: (x, a) => [referenceGradients(x, a)[0]], cases: gradCases }),
  opTests<AttentionAttrs>({ op: attentionGradKvOp, reference: (x, a) => referenceGradients(x, a).slice(1, 3), cases: gradCases }),
  opTests<AttentionAttrs>({ op: attentionGradMaskOp, reference: (x, a) => [referenceGradients(x, a)[3]], cases: gradCases.filter((c) => c.inputs.length === 6) }),
  opTests<{ heads: number }>({
    op: attentionStatsOp,
    reference([o, dout, lse, dlse], { heads }) {
      const [b, t, c] = o!.shape as [number, number, number];
      const head = c / heads;
      const y = new Float64Array(2 * b * heads * t);
      for (let i = 0; i < b; i++) {
        for (let h = 0; h < heads; h++) {
          for (let r = 0; r < t; r++) {
            const row = (i * heads + h) * t + r;
            y[2 * row] = lse!.data[row]! * Math.LOG2E;
            for (let d = 0; d < head; d++) y[2 * row + 1]! += o!.data[(i * t + r) * c + h * head + d]! * dout!.data[(i * t + r) * c + h * head + d]!;
            if (dlse) y[2 * row + 1]! -= dlse.data[row]!;
          }
        }
      }
      return [y];
    },
    cases: [
      { name: 'heads of 8', inputs: [{ shape: [2, 5, 24] }, { shape: [2, 5, 24] }, { shape: [2, 3, 5], dtype: 'f32' }], attrs: { heads: 3 } },
      { name: 'heads of 5, gradient of lse', inputs: [{ shape: [1, 7, 10] }, { shape: [1, 7, 10] }, { shape: [1, 2, 7], dtype: 'f32' }, { shape: [1, 2, 7], dtype: 'f32' }], attrs: { heads: 2 } },
      { name: 'more than one workgroup', inputs: [{ shape: [4, 70, 8] }, { shape: [4, 70, 8] }, { shape: [4, 2, 70], dtype: 'f32' }], attrs: { heads: 2 } },
    ],
  }),
] as unknown as OpTests<never>[];
