import shader from '../../../shaders/embedding.wgsl';
import { check } from '../errors';
import type { Tensor } from '../graph';
import { defineOp, opTests, type OpTests, type RefTensor } from '../op';
import { vectorType } from '../pointwise_codegen';
import { numel, showShape, type DType } from '../shape';
import { emitZeros } from './copy';

const indexType = (dtype: DType): string => vectorType(dtype, 1);

const checkIds = (dtype: DType): void => check(dtype === 'i32' || dtype === 'u32', 'shape', () => `ids must be i32 or u32, not ${dtype}`);

const embeddingOp = defineOp<object>({
  name: 'embedding',
  doc: 'Rows of a table [V,D] by ids [...]: the result is [...,D] (torch.nn.functional.embedding). An id outside 0…V−1 reads the nearest row.',
  infer([table, ids]) {
    check(table!.shape.length === 2, 'shape', () => `the table must be [V,D], not ${showShape(table!.shape)}`);
    checkIds(ids!.dtype);
    return [{ shape: [...ids!.shape, table!.shape[1]!], dtype: table!.dtype }];
  },
  lower({ inputs: [table, ids], outputs: [y], dispatch }) {
    const [rows, dim] = table!.shape as [number, number];
    const width = dim % 4 === 0 ? 4 : 1;
    dispatch({
      shader: { file: 'embedding.wgsl', text: shader },
      entry: 'forward',
      prologue: { T: vectorType(table!.dtype, width), I: indexType(ids!.dtype) },
      bindings: { table: table!, ids: ids!, y: y! },
      params: { tokens: numel(ids!.shape), rows, columns: dim / width },
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
      prologue: { G: vectorType(dy!.dtype, width), V: vectorType('f32', width), I: indexType(ids!.dtype) },
      bindings: { dy: dy!, ids: ids!, dtable: dtable! },
      params: { tokens, rows, columns: dim / width },
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
  opTests({
    op: embeddingOp,
    reference([table, ids]) {
      const [rows, dim] = table!.shape as [number, number];
      return [Float64Array.from(rowsOf(ids!, rows).flatMap((r) => Array.from(table!.data.subarray(r * dim, (r + 1) * dim))))];
    },
    cases: [
      { name: 'odd width', inputs: [{ shape: [11, 7] }, { shape: [2, 3], dtype: 'i32', fill: { int: 11 } }], attrs: {}, tolerance: 0 },
      { name: 'fewer rows than tokens', inputs: [{ shape: [3, 8] }, { shape: [13], dtype: 'u32', fill: { int: 3 } }], attrs: {}, tolerance: 0 },
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
