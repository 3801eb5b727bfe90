import shader from '../../../shaders/nearest_row.wgsl';
import { check } from '../errors';
import type { Tensor } from '../graph';
import { defineOp, opTests } from '../op';
import { numel, showShape } from '../shape';

const nearestRowOp = defineOp<object>({
  name: 'nearest_row',
  doc: 'u32 [...]: for each row of x [..., D] the row of a table [V,D] at the least Euclidean distance, the first of several (torch.cdist and argmin).',
  infer([x, table]) {
    const width = table!.shape[1];
    check(table!.shape.length === 2 && x!.shape.length >= 1 && x!.shape[x!.shape.length - 1] === width && x!.dtype === table!.dtype, 'shape', () => `x ${showShape(x!.shape)} ${x!.dtype} must be rows as wide as those of the table ${showShape(table!.shape)} ${table!.dtype}`);
    return [{ shape: x!.shape.slice(0, -1), dtype: 'u32' }];
  },
  lower({ inputs: [x, table], outputs: [y], dispatch }) {
    const [entries, columns] = table!.shape as [number, number];
    const rows = numel(y!.shape);
    dispatch({
      shader: { file: 'nearest_row.wgsl', text: shader },
      entry: 'forward',
      prologue: { X: x!.dtype },
      bindings: { x: x!, table: table!, nearest: y! },
      params: { rows, columns, entries },
      workgroups: Math.ceil(rows / 64),
    });
  },
  flops: ([x, table]) => 3 * numel(x!.shape) * table!.shape[0]!,
  grad: { notDifferentiable: 'an index does not change with what is near it' },
});

/** For each row of `x` [..., D] the index of the nearest row of `table` [V,D]: u32 [...]. */
export const nearestRow = (x: Tensor, table: Tensor): Tensor => x.graph.add1(nearestRowOp, [x, table], {});

export const tests = opTests({
  op: nearestRowOp,
  reference([x, table]) {
    const [entries, width] = table!.shape as [number, number];
    return [
      Float64Array.from({ length: x!.data.length / width }, (_, row) => {
        const distances = Array.from({ length: entries }, (_, entry) => {
          let sum = 0;
          for (let c = 0; c < width; c++) sum += (x!.data[row * width + c]! - table!.data[entry * width + c]!) ** 2;
          return sum;
        });
        return distances.indexOf(Math.min(...distances));
      }),
    ];
  },
  cases: [
    { name: 'odd sizes', inputs: [{ shape: [3, 5, 3] }, { shape: [37, 3] }], attrs: {}, tolerance: 0 },
    { name: 'more rows than a workgroup', inputs: [{ shape: [131, 4] }, { shape: [16, 4] }], attrs: {}, tolerance: 0 },
    { name: 'one entry', inputs: [{ shape: [7, 1] }, { shape: [1, 1] }], attrs: {}, tolerance: 0 },
    { name: 'the first of several', inputs: [{ shape: [2, 2], fill: { values: [0, 0, 1, 0] } }, { shape: [4, 2], fill: { values: [3, 0, 0.5, 0, 0.5, 0, 1.5, 0] } }], attrs: {}, tolerance: 0 },
    { name: 'a codebook', inputs: [{ shape: [256, 3] }, { shape: [2048, 3] }], attrs: {}, tolerance: 0, bench: true, skipGrad: true },
  ],
});
