import matmulShader from '../../../shaders/matmul.wgsl';
import matmulBroadcastShader from '../../../shaders/matmul_broadcast.wgsl';
import matmulFewRowsShader from '../../../shaders/matmul_few_rows.wgsl';
import matmulSubgroupShader from '../../../shaders/matmul_subgroup.wgsl';
import matmulSubgroupMatrixShader from '../../../shaders/matmul_subgroup_matrix.wgsl';
import matmulTiledShader from '../../../shaders/matmul_tiled.wgsl';
import type { AdapterProfile } from '../device';
import { BruitError } from '../errors';
import type { Tensor, TensorSpec } from '../graph';
import { defineOp, opTests, type Bindable, type LowerContext } from '../op';
import { vectorType } from '../pointwise_codegen';
import type { ShaderSource } from '../shader';
import { dtypeBytes, numel, sameShape, showShape, type Shape } from '../shape';
import { concat, emitCopy } from './copy';
import { kernelFor, productVariants, subgroupTiles, type KernelName } from './product_kernel';
import { reshape } from './reshape';
import { splitSum } from './split_sum';
import { matrixTiles, type MatrixTile } from './subgroup_matrix';
import { weightOperand } from './weight_operand';

export interface MatmulOptions {
  /** `a` is stored [..., K, M]. */
  readonly transposeA?: boolean;
  /** `b` is stored [..., N, K]. */
  readonly transposeB?: boolean;
}

export interface MatmulAttrs {
  readonly transposeA: boolean;
  readonly transposeB: boolean;
  /** Adds the products of all batches: the gradient of an operand that they share. */
  readonly sumBatch: boolean;
}

/** Both operands stored as they are multiplied. */
export const plainProduct: MatmulAttrs = { transposeA: false, transposeB: false, sumBatch: false };

export interface MatmulDimensions {
  readonly batch: number;
  readonly m: number;
  readonly n: number;
  readonly k: number;
  /** Elements from one batch to the next, 0 for a shared operand. */
  readonly aStride: number;
  /** Whether all batches share b. */
  readonly bShared: boolean;
}

function dimensions([a, b]: readonly TensorSpec[], { transposeA, transposeB }: MatmulAttrs): MatmulDimensions & { /** Batch dimensions of the operands. */ readonly lead: Shape } {
  const shapes = `a ${showShape(a!.shape)}${transposeA ? ' (transposed)' : ''}, b ${showShape(b!.shape)}${transposeB ? ' (transposed)' : ''}`;
  if (a!.shape.length < 2 || b!.shape.length < 2) throw new BruitError('shape', `operands need two dimensions or more: ${shapes}`);
  const [aRows, aColumns] = a!.shape.slice(-2) as [number, number];
  const [bRows, bColumns] = b!.shape.slice(-2) as [number, number];
  const [m, k] = transposeA ? [aColumns, aRows] : [aRows, aColumns];
  const [kOfB, n] = transposeB ? [bColumns, bRows] : [bRows, bColumns];
  if (k !== kOfB) throw new BruitError('shape', `the inner dimensions ${k} and ${kOfB} differ: ${shapes}`);
  const leadA = a!.shape.slice(0, -2);
  const leadB = b!.shape.slice(0, -2);
  if (leadA.length && leadB.length && !sameShape(leadA, leadB)) {
    throw new BruitError('shape', `batch dimensions ${showShape(leadA)} and ${showShape(leadB)} differ; they must be equal, or one operand have none: ${shapes}`);
  }
  const lead = leadA.length ? leadA : leadB;
  return { lead, batch: numel(lead), m, n, k, aStride: leadA.length ? m * k : 0, bShared: leadB.length === 0 };
}

export const matmulOp = defineOp<MatmulAttrs>({
  name: 'matmul',
  doc: 'C[..., M, N] = A[..., M, K] · B[..., K, N], either operand stored transposed, batch dimensions equal or one operand shared by all batches. Sums in f32; long reductions are split over workgroups and added in a fixed order, so results repeat bit for bit.',
  infer(inputs, attrs) {
    const { lead, m, n } = dimensions(inputs, attrs);
    return [{ shape: attrs.sumBatch ? [m, n] : [...lead, m, n], dtype: inputs[0]!.dtype }];
  },
  variants: [...productVariants, 'few_rows'],
  epilogueBuffers: 5,
  weightInput: ([, b], { transposeB, sumBatch }) => (b!.shape.length === 2 && !transposeB && !sumBatch ? { index: 1 } : undefined),
  overParts: ([a], parts, attrs) => concat(parts.map((part) => apply(a!, part, attrs.transposeA, false)), -1),
  lower: lowerMatmul,
  flops(inputs, _, attrs) {
    const { batch, m, n, k } = dimensions(inputs, attrs);
    return 2 * batch * m * n * k;
  },
  grad({ inputs: [a, b], outputGrads, attrs, needs }) {
    const dy = outputGrads[0]!;
    return [needs[0] ? gradA(a!, b!, dy, attrs) : undefined, needs[1] ? gradB(a!, b!, dy, attrs) : undefined];
  },
});

/** dL/da as `a` is stored: dY·Bᵀ, or B·dYᵀ where a is stored transposed. */
function gradA(a: Tensor, b: Tensor, dy: Tensor, { transposeA, transposeB }: MatmulAttrs): Tensor {
  const sumBatch = a.shape.length === 2 && b.shape.length > 2;
  return transposeA ? apply(b, dy, transposeB, true, sumBatch) : apply(dy, b, false, !transposeB, sumBatch);
}

/** dL/db as `b` is stored: Aᵀ·dY, or dYᵀ·A where b is stored transposed. */
function gradB(a: Tensor, b: Tensor, dy: Tensor, { transposeA, transposeB }: MatmulAttrs): Tensor {
  const shared = b.shape.length === 2 && a.shape.length > 2;
  if (shared && !transposeA && dy.shape.length > 2) {
    // Rows of all batches are one long reduction.
    const rows = reshape(a, [-1, a.shape[a.shape.length - 1]!]);
    const dyRows = reshape(dy, [-1, dy.shape[dy.shape.length - 1]!]);
    return transposeB ? apply(dyRows, rows, true, false) : apply(rows, dyRows, true, false);
  }
  return transposeB ? apply(dy, a, true, transposeA, shared) : apply(a, dy, !transposeA, false, shared);
}

/** Most terms that one f32 accumulator adds: rounding grows with their number. */
const longestSum = 8192;

/** What one workgroup (tiled, subgroup) or invocation (direct) computes. */
interface Tile extends Partial<Pick<MatrixTile, 'stageK' | 'prologue'>> {
  readonly rows: number;
  readonly columns: number;
  /** Register tile that the shader includes. */
  readonly include?: 'lib/tile_4x4.wgsl' | 'lib/tile_8x8.wgsl';
  /** Entry point, `forward` where the shader has one for all tiles. */
  readonly entry?: string;
}

interface Kernel {
  readonly shader: ShaderSource;
  /** From large to small. */
  readonly tiles: readonly Tile[];
  /** k is split at multiples of this. */
  readonly step: (tile: Tile) => number;
  /** Tiles that fill an adapter: k is split, or the tile made smaller, where there are fewer. */
  readonly wanted: number;
  readonly tilesPerWorkgroup: number;
}

const tile4x4 = 'lib/tile_4x4.wgsl';
const tile8x8 = 'lib/tile_8x8.wgsl';
const kernels: Readonly<Record<KernelName | 'few_rows' | 'subgroup_matrix', Kernel>> = {
  direct: {
    shader: { file: 'matmul.wgsl', text: matmulShader },
    tiles: [{ rows: 16, columns: 8 }, { rows: 8, columns: 4, entry: 'narrow' }],
    step: () => 4,
    wanted: 64,
    tilesPerWorkgroup: 8,
  },
  few_rows: {
    shader: { file: 'matmul_few_rows.wgsl', text: matmulFewRowsShader },
    tiles: [], // as many rows as there are: fewRowsTile
    step: () => 4,
    wanted: 8,
    tilesPerWorkgroup: 8,
  },
  broadcast: {
    shader: { file: 'matmul_broadcast.wgsl', text: matmulBroadcastShader },
    tiles: [{ rows: 8, columns: 16 }],
    step: () => 4,
    wanted: 4,
    tilesPerWorkgroup: 1,
  },
  subgroup: {
    shader: { file: 'matmul_subgroup.wgsl', text: matmulSubgroupShader },
    tiles: [64, 32, 16, 8].map((rows) => ({ rows, columns: 32, prologue: { ROWS: `${rows}u` } })),
    step: () => 4,
    wanted: 16,
    tilesPerWorkgroup: 1,
  },
  tiled: {
    shader: { file: 'matmul_tiled.wgsl', text: matmulTiledShader },
    tiles: [{ rows: 64, columns: 64, include: tile8x8 }, { rows: 32, columns: 32, include: tile4x4 }],
    // 64 invocations stage a block of 4x4 each.
    step: ({ rows }) => 1024 / rows,
    wanted: 96,
    tilesPerWorkgroup: 1,
  },
  subgroup_matrix: {
    shader: { file: 'matmul_subgroup_matrix.wgsl', text: matmulSubgroupMatrixShader },
    tiles: [], // as the adapter's matrices are: matrixTiles
    step: ({ stageK }) => stageK!,
    wanted: 96,
    tilesPerWorkgroup: 1,
  },
};

/** Whether a product has so few rows that tiles of other kernels would be mostly empty; the variant may be tried up to 16. GPUs wait for B's memory with any tile. */
const fewRowsPay = (m: number, { kind }: AdapterProfile, variant: string | undefined): boolean => (variant === 'few_rows' ? m <= 16 : variant === undefined && kind === 'software' && m <= 4);

/** The tile of matmul_few_rows.wgsl for a product of `m` rows. */
function fewRowsTile(m: number): Tile {
  const rows = m > 2 ? 4 : m;
  return { rows, columns: 8, prologue: { ROWS: `${rows}u` } };
}

function lowerMatmul(ctx: LowerContext<MatmulAttrs>): void {
  const { inputs, outputs: [y], attrs } = ctx;
  emitMatmul(ctx, dimensions(inputs, attrs), attrs, inputs as [Tensor, Tensor], y!);
}

/** The dispatches of a·b into y with the dimensions `d`, whatever their own shapes: for other ops, too, whose core is a product. */
export function emitMatmul(ctx: LowerContext<object>, d: MatmulDimensions, attrs: MatmulAttrs, [a, b]: readonly [Bindable, Bindable], y: Bindable): void {
  const { profile, variant, packed, temp, dispatch } = ctx;
  const { transposeA, transposeB, sumBatch } = attrs;
  const { batch: batches, m: rows, n, k, aStride, bShared } = d;
  // One weight for all batches: their rows are one matrix.
  const fold = bShared && !transposeA && !sumBatch;
  const batch = fold ? 1 : batches;
  const m = fold ? rows * batches : rows;

  // Of short sums, storing is a good part, and the broadcast kernel stores by elements: 16% more time at 27 terms, 8% at 64.
  // Where rows are not divisible by 4 both do, and what is left is 8% up to 48 terms, if there are 64 tiles of 16x8 and these no emptier than those of 8x16.
  const few = fewRowsPay(m, profile, variant);
  const own = variant === 'few_rows' ? undefined : variant;
  const padded = (rows: number, columns: number) => Math.ceil(m / rows) * rows * Math.ceil(n / columns) * columns;
  const short = profile.kind === 'software' && profile.subgroupSize === 4 && m >= 16 && (n % 4 === 0 ? k <= 72 : k <= 48 && batch * padded(16, 8) >= 8192 && padded(16, 8) < 1.08 * padded(8, 16));
  const packedB = 'temp' in b ? undefined : packed(b);
  const matrices = matrixTiles(profile, variant, { left: a.dtype, right: b.dtype, packed: packedB, m, n, k });
  const name = matrices ? 'subgroup_matrix' : few ? 'few_rows' : kernelFor(profile, own ?? (short ? 'direct' : undefined), n, 8);
  const kernel = kernels[name];
  const { shader, step: stepOf, wanted, tilesPerWorkgroup } = kernel;
  const tiles: readonly Tile[] = matrices ?? (few ? [fewRowsTile(m)] : name === 'subgroup' ? subgroupTiles(kernel.tiles, profile) : kernel.tiles);
  const tilesM = (t: Tile) => Math.ceil(m / t.rows);
  const tilesN = (t: Tile) => Math.ceil(n / t.columns);
  const count = (t: Tile) => tilesM(t) * tilesN(t) * batch;
  const smallest = tiles[tiles.length - 1]!;
  // A smaller tile is no better for few columns if it is as wide.
  const wide = (t: Tile) => n * 2 > t.columns || t.columns === smallest.columns;
  const tile = (variant !== 'tiled_small' && tiles.find((t) => count(t) >= wanted && m * 2 > t.rows && wide(t))) || smallest;
  const step = stepOf(tile);
  const splits = Math.max(Math.ceil(k / longestSum), Math.min(Math.ceil(wanted / count(tile)), Math.floor(k / 64), 64), 1);
  const sliceK = Math.ceil(k / splits / step) * step;
  const slices = batch * Math.ceil(k / sliceK);
  const parts = sumBatch ? slices : slices / batch;
  const target = parts === 1 ? y : temp('partial sums', [parts, ...y.shape]);

  const byScalars = name === 'broadcast';
  const aWide = !byScalars && (transposeA ? !few && m % 4 === 0 : k % 4 === 0);
  const width = n % 4 === 0 && !byScalars ? 4 : 1;
  let readB: Bindable = b;
  if (byScalars && transposeB) {
    readB = temp('transposed b', [...b.shape.slice(0, -2), k, n], b.dtype);
    emitCopy({ dispatch, profile, variant: undefined }, { from: b, to: readB, dims: [numel(b.shape) / (k * n), k, n], fromStrides: [k * n, 1, k], toStrides: [k * n, n, 1] });
  }
  const transposed = transposeB && !byScalars;
  const stores = name === 'tiled' ? 'block' : 'row';
  const operand = weightOperand({ dtype: b.dtype, packed: packedB, even: (transposed ? k : n) % 4 === 0, wide: !byScalars, transposed });
  dispatch({
    shader,
    entry: tile.entry ?? 'forward',
    prologue: {
      A: vectorType(a.dtype, aWide ? 4 : 1),
      A4: vectorType(a.dtype, 4),
      Y: vectorType(target.dtype, width),
      V: vectorType('f32', width),
      A_WIDE: aWide,
      K_EDGE: k % step !== 0,
      TRANSPOSE_A: transposeA,
      ...(name === 'tiled' && { STAGE_K: `${step}u` }),
      ...((name === 'tiled' || name === 'subgroup_matrix') && { TRANSPOSE_B: transposed }),
      ...tile.prologue,
      ...operand.prologue,
    },
    includes: { ...operand.includes, ...(!byScalars && { [`lib/store_${stores}_4.wgsl`]: `lib/store_${stores}_${width}.wgsl` }), ...(tile.include && { [tile8x8]: tile.include }) },
    bindings: { a, w: readB, y: target },
    params: { m, n, k, tiles_m: tilesM(tile), tiles_n: tilesN(tile), batch, slices, slice_k: sliceK, a_stride: aStride, b_rows: bShared ? 0 : transposed ? n : k },
    workgroups: Math.ceil((tilesM(tile) * tilesN(tile) * slices) / tilesPerWorkgroup),
    ...(parts === 1 ? { epilogueWidth: width } : { cost: { flops: 2 * batch * m * n * k, bytes: numel(a.shape) * dtypeBytes[a.dtype] + numel(b.shape) * dtypeBytes[b.dtype] + numel(target.shape) * 4 } }),
  });
  if (parts > 1 && 'temp' in target) dispatch(splitSum(target, y, parts));
}

function apply(a: Tensor, b: Tensor, transposeA: boolean, transposeB: boolean, sumBatch = false): Tensor {
  return a.graph.add1(matmulOp, [a, b], { transposeA, transposeB, sumBatch });
}

/**
 * Matrix product of a [..., M, K] and b [..., K, N] as [..., M, N], stored as `a` is. Batch dimensions are equal, or one operand is
 * a matrix that all batches share. Bias, activation and residual written after it are fused into its store.
 */
export function matmul(a: Tensor, b: Tensor, { transposeA = false, transposeB = false }: MatmulOptions = {}): Tensor {
  return apply(a, b, transposeA, transposeB);
}

export const tests = opTests<MatmulAttrs>({
  op: matmulOp,
  reference(inputs, attrs) {
    const { batch, m, n, k, aStride, bShared } = dimensions(inputs.map(({ shape }) => ({ shape, dtype: 'f32' as const })), attrs);
    const [a, b] = [inputs[0]!.data, inputs[1]!.data];
    const y = new Float64Array((attrs.sumBatch ? 1 : batch) * m * n);
    for (let z = 0; z < batch; z++) {
      for (let i = 0; i < m; i++) {
        for (let j = 0; j < n; j++) {
          let total = 0;
          for (let p = 0; p < k; p++) total += a[z * aStride + (attrs.transposeA ? p * m + i : i * k + p)]! * b[(bShared ? 0 : z * k * n) + (attrs.transposeB ? j * k + p : p * n + j)]!;
          y[((attrs.sumBatch ? 0 : z) * m + i) * n + j]! += total;
        }
      }
    }
    return [y];
  },
  // Sums of K products of normal numbers: their rounding error is about 6e-8·√K of their size.
  cases: [
    ...[false, true].flatMap((transposeA) =>
      [false, true].flatMap((transposeB) => {
        const t = `${transposeA ? 'T' : 'N'}${transposeB ? 'T' : 'N'}`;
        const attrs = { transposeA, transposeB, sumBatch: false };
        const shapes = (m: number, n: number, k: number, leadA: number[] = [], leadB: number[] = []) => [
          { shape: [...leadA, ...(transposeA ? [k, m] : [m, k])] },
          { shape: [...leadB, ...(transposeB ? [n, k] : [k, n])] },
        ];
        return [
          { name: `${t}, vec4`, inputs: shapes(12, 20, 8), attrs },
          { name: `${t}, odd, batched`, inputs: shapes(5, 7, 3, [2, 3], [2, 3]), attrs },
          { name: `${t}, one beyond a tile, prime k`, inputs: shapes(65, 33, 37), attrs, tolerance: 5e-6, skipGrad: true },
          ...[1, 2, 3].map((rows) => ({ name: `${t}, rows: ${rows}`, inputs: shapes(rows, 30 + rows, 70 - rows), attrs, tolerance: 5e-6, skipGrad: true })),
          { name: `${t}, b shared`, inputs: shapes(6, 8, 12, [3], []), attrs },
          { name: `${t}, a shared`, inputs: shapes(8, 5, 4, [], [2]), attrs },
          { name: `${t}, summed over batches`, inputs: shapes(4, 9, 6, [3], [3]), attrs: { ...attrs, sumBatch: true } },
          { name: `${t}, tiles of 64 and 8`, inputs: shapes(130, 68, 20, [40], [40]), attrs, tolerance: 5e-6, skipGrad: true },
        ];
      }),
    ),
    { name: 'one element', inputs: [{ shape: [1, 1] }, { shape: [1, 1] }], attrs: plainProduct },
    { name: 'a vector on either side', inputs: [{ shape: [2, 1, 5] }, { shape: [2, 5, 1] }], attrs: plainProduct },
    { name: 'outer product', inputs: [{ shape: [9, 1] }, { shape: [1, 6] }], attrs: plainProduct },
    { name: 'k split, few rows', inputs: [{ shape: [2, 1280] }, { shape: [1280, 36] }], attrs: plainProduct, tolerance: 1e-5, skipGrad: true, packed: true },
    { name: 'two bands of packed weights and a part, batched', inputs: [{ shape: [3, 11, 76] }, { shape: [76, 72] }], attrs: plainProduct, tolerance: 5e-6, skipGrad: true, packed: true },
    { name: 'odd columns of packed weights', inputs: [{ shape: [7, 45] }, { shape: [45, 35] }], attrs: plainProduct, tolerance: 5e-6, skipGrad: true, packed: true },
    { name: 'k split beyond the longest sum, odd', inputs: [{ shape: [16411, 3] }, { shape: [16411, 5] }], attrs: { ...plainProduct, transposeA: true }, tolerance: 2e-5, skipGrad: true },
    { name: 'time embedding', inputs: [{ shape: [4, 512] }, { shape: [512, 512] }], attrs: plainProduct, tolerance: 1e-5, skipGrad: true, bench: true },
    { name: 'linear layer of tokens', inputs: [{ shape: [4, 256, 128] }, { shape: [128, 512] }], attrs: plainProduct, tolerance: 1e-5, skipGrad: true, bench: true },
    { name: 'weight gradient of a linear layer', inputs: [{ shape: [1024, 128] }, { shape: [1024, 512] }], attrs: { ...plainProduct, transposeA: true }, tolerance: 1e-5, skipGrad: true, bench: true },
    { name: 'attention scores', inputs: [{ shape: [8, 256, 64] }, { shape: [8, 256, 64] }], attrs: { ...plainProduct, transposeB: true }, tolerance: 1e-5, skipGrad: true, bench: true },
    { name: 'attention values', inputs: [{ shape: [8, 256, 256] }, { shape: [8, 256, 64] }], attrs: plainProduct, tolerance: 1e-5, skipGrad: true, bench: true },
  ],
});
