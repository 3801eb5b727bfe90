import shader from '../../../shaders/embedding.wgsl';
import { check } from '../errors';
import type { Tensor } from '../graph';
import { defineOp, opTests, type OpTests, type RefTensor } from '../op';
import { vectorType } from '../pointwise_codegen';
import { numel, showShape, type DType } from '../shape';
import { emitZeros } from './copy';
import { add } from './pointwise';
import { weightOperand } from './weight_operand';

const indexType = (dtype: DType): string => vectorType(dtype, 1);

const checkIds = (dtype: DType): void => check(dtype === 'i32' || dtype === 'u32', 'shape', () => `ids must be i32 or u32, not ${dtype}`);

interface EmbeddingAttrs {
  /** Where the table is a part of a longer one: that one's rows, and which of them is the part's first. */
  readonly part?: { readonly first: number; readonly total: number };
}

const embeddingOp = defineOp<EmbeddingAttrs>({
  name: 'embedding',
  doc: 'Rows of a table [V,D] by ids [...]: the result is [...,D] (torch.nn.functional.embedding). An id outside 0…V−1 reads the nearest row.',
  infer([table, ids]) {
    check(table!.shape.length === 2, 'shape', () => `the table must be [V,D], not ${showShape(table!.shape)}`);
    check(table!.dtype === 'f32' || table!.dtype === 'f16', 'shape', () => `the table must hold floating-point numbers, not ${table!.dtype}`);
    checkIds(ids!.dtype);
    return [{ shape: [...ids!.shape, table!.shape[1]!], dtype: table!.dtype }];
  },
  weightInput: () => ({ index: 0, table: true }),
  overParts([table, ids], parts): Tensor {
    let first = 0;
    return parts.map((t) => {
      const y = t.graph.add1(embeddingOp, [t, ids!], { part: { first, total: table!.shape[0]! } });
      first += t.shape[0]!;
      return y;
    }).reduce(add);
  },
  lower({ inputs: [table, ids], outputs: [y], attrs: { part }, packed, dispatch }) {
    const [rows, dim] = table!.shape as [number, number];
    const width = dim % 4 === 0 ? 4 : 1;
    const { prologue, includes } = weightOperand({ dtype: table!.dtype, packed: packed(table!), even: width === 4, wide: true });
    dispatch({
      shader: { file: 'embedding.wgsl', text: shader },
      entry: 'forward',
      prologue: { ...prologue, T: vectorType(table!.dtype, width), V: vectorType('f32', width), I: indexType(ids!.dtype), WIDTH: `${width}u` },
      includes: { ...includes, 'lib/lanes_1.wgsl': `lib/lanes_${width}.wgsl` },
      bindings: { w: table!, ids: ids!, y: y! },
      params: { tokens: numel(ids!.shape), rows, first: part?.first ?? 0, total: part?.total ?? rows, n: dim },
      workgroups: Math.ceil(numel(y!.shape) / width / 64),
    });
  },
  flops: () => 0,
  grad: ({ graph, inputs: [table, ids], outputGrads }) => [graph.add1(embeddingGradOp, [outputGrads[0]!, ids!], { rows: table!.shape[0]! }), undefined],
  integerInputs: [1],
});

const embeddingGradOp = defineOp<{ rows: number }>({
  name: 'embedding_grad',
  doc: 'Gradient of the table of embedding: row v is the sum of dy over the tokens with id v, in their order (no atomics), 0 where there is none. [V,D] f32.',
  infer([dy, ids], { rows }) {
    checkIds(ids!.dtype);
    return [{ shape: [rows, dy!.shape[dy!.shape.length - 1]!], dtype: 'f32' }];
  },
  lower(ctx) {
    const { inputs: [dy, ids], outputs: [dtable], attrs: { rows }, variant } = ctx;
    const dim = dtable!.shape[1]!;
    const width = dim % 4 === 0 ? 4 : 1;
    const tokens = numel(ids!.shape);
    // A table of many more rows than tokens (a vocabulary) is mostly zeros.
    const byToken = variant ? variant === 'tokens' : rows > tokens;
    if (byToken) emitZeros(ctx, dtable!);
    ctx.dispatch({
      shader: { file: 'embedding.wgsl', text: shader },
      entry: byToken ? 'grad_tokens' : 'grad_rows',
      prologue: { G: vectorType(dy!.dtype, width), V: vectorType('f32', width), I: indexType(ids!.dtype), WIDTH: `${width}u` },
      bindings: { dy: dy!, ids: ids!, dtable: dtable! },
      params: { tokens, rows, first: 0, total: rows, n: dim },
      workgroups: Math.ceil(((byToken ? tokens : rows) * dim) / width / 64),
    });
  },
  flops: ([dy]) => numel(dy!.shape),
  grad: { notDifferentiable: 'it appears in gradients only, and gradients of gradients are not built' },
  variants: ['rows', 'tokens'],
});

/** Rows of `table` [V,D] by `ids` (i32 or u32) [...]: [...,D]. An id outside 0…V−1 reads the nearest row. */
export const embedding = (table: Tensor, ids: Tensor): Tensor => table.graph.add1(embeddingOp, [table, ids], {});

/** Row of the table for every id, as the kernel clamps. */
const rowsOf = (ids: RefTensor, rows: number): number[] => Array.from(ids.data, (v) => Math.min(Math.max(v, 0), rows - 1));

export const tests: OpTests<never>[] = [
  opTests<EmbeddingAttrs>({
    op: embeddingOp,
    reference([table, ids], { part }) {
      const [rows, dim] = table!.shape as [number, number];
      const { first, total } = part ?? { first: 0, total: rows };
      return [Float64Array.from(rowsOf(ids!, total).flatMap((r) => (r < first || r >= first + rows ? new Array<number>(dim).fill(0) : Array.from(table!.data.subarray((r - first) * dim, (r - first + 1) * dim)))))];
    },
    cases: [
      { name: 'odd width', inputs: [{ shape: [11, 7] }, { shape: [2, 3], dtype: 'i32', fill: { int: 11 } }], attrs: {}, tolerance: 0, packed: true },
      { name: 'fewer rows than tokens', inputs: [{ shape: [3, 8] }, { shape: [13], dtype: 'u32', fill: { int: 3 } }], attrs: {}, tolerance: 0 },
      { name: 'rows longer than a block of packed weights', inputs: [{ shape: [5, 44] }, { shape: [9], dtype: 'i32', fill: { int: 5 } }], attrs: {}, tolerance: 0, packed: true },
      { name: 'part of a longer table', inputs: [{ shape: [4, 12] }, { shape: [7], dtype: 'i32', fill: { values: [-3, 0, 4, 5, 8, 9, 99] } }], attrs: { part: { first: 5, total: 20 } }, tolerance: 0, skipGrad: true, packed: true },
      { name: 'ids outside', inputs: [{ shape: [4, 5] }, { shape: [5], dtype: 'i32', fill: { values: [-1, 4, 3, -2147483648, 2147483647] } }], attrs: {}, tolerance: 0 },
      { name: 'one row', inputs: [{ shape: [1, 1] }, { shape: [1], dtype: 'i32', fill: { int: 1 } }], attrs: {}, tolerance: 0 },
      { name: 'text encoder tokens', inputs: [{ shape: [4096, 768] }, { shape: [2, 77], dtype: 'i32', fill: { int: 4096 } }], attrs: {}, tolerance: 0, skipGrad: true, bench: true },
    ],
  }),
  opTests<{ rows: number }>({
    op: embeddingGradOp,
    reference([dy, ids], { rows }) {
      const dim = dy!.shape[dy!.shape.length - 1]!;
      const out = new Float64Array(rows * dim);
      rowsOf(ids!, rows).forEach((r, token) => {
        for (let k = 0; k < dim; k++) out[r * dim + k]! += dy!.data[token * dim + k]!;
      });
      return [out];
    },
    cases: [
      { name: 'repeated ids', inputs: [{ shape: [3, 7, 5] }, { shape: [3, 7], dtype: 'i32', fill: { int: 4 } }], attrs: { rows: 6 } },
      { name: 'long table', inputs: [{ shape: [9, 8] }, { shape: [9], dtype: 'u32', fill: { values: [500, 2, 500, 1999, 0, 2] } }], attrs: { rows: 2000 } },
      { name: 'ids outside', inputs: [{ shape: [5, 4] }, { shape: [5], dtype: 'i32', fill: { values: [-1, 4, 3, -2147483648, 2147483647] } }], attrs: { rows: 4 } },
      { name: 'class labels', inputs: [{ shape: [128, 512] }, { shape: [128], dtype: 'i32', fill: { int: 10 } }], attrs: { rows: 10 }, tolerance: 1e-5, bench: true },
    ],
  }),
] as unknown as OpTests<never>[];
