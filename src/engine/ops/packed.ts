/** Packed weights (src/io/packed.ts has the layouts) to plain f32 and back, on the GPU. */
import packShader from '../../../shaders/pack.wgsl';
import unpackShader from '../../../shaders/unpack.wgsl';
import { check } from '../errors';
import type { Tensor } from '../graph';
import { defineOp } from '../op';
import { numel, sameShape, showShape } from '../shape';
import { weightOperand } from './weight_operand';

const unpackOp = defineOp<{ table: boolean }>({
  name: 'unpack',
  doc: 'The numbers of a packed weight as f32, for ops whose kernels read plain elements only.',
  infer: ([w]) => [{ shape: w!.shape, dtype: 'f32' }],
  lower({ inputs: [w], outputs: [y], attrs: { table }, packed, dispatch }) {
    const count = numel(w!.shape);
    const format = packed(w!);
    const quads = Math.ceil(count / 4);
    dispatch({
      shader: { file: 'unpack.wgsl', text: unpackShader },
      // Halves lie in a matrix as in a table.
      entry: table || format === 'f16' || format === 'bf16' ? 'forward' : 'matrix',
      ...weightOperand({ dtype: 'f32', packed: format, even: true, wide: true }),
      bindings: { w: w!, y: y! },
      params: { count, n: w!.shape.at(-1)! },
      workgroups: Math.ceil(quads / 64),
    });
  },
  flops: () => 0,
  grad: { notDifferentiable: 'it is put in when a program is compiled, after differentiation' },
  weightInput: (_, { table }) => ({ index: 0, table }),
});

export const packedInto = defineOp<{ table: boolean }>({
  name: 'pack_into',
  doc: 'Packs f32 numbers into the memory of a packed parameter, as src/io/packed.ts does on the host: rounded to nearest, with new scales for int8 and int4.',
  infer([w, x]) {
    check(sameShape(w!.shape, x!.shape) && x!.dtype === 'f32', 'shape', () => `destination ${showShape(w!.shape)} and f32 source ${showShape(x!.shape)} must have the same shape`);
    return [];
  },
  lower({ inputs: [w, x], attrs: { table }, packed, dispatch }) {
    const count = numel(w!.shape);
    const n = table ? 1 : w!.shape.at(-1)!;
    const format = packed(w!);
    check(format, 'input', () => `pack_into: ${w} is not packed`);
    const common = { shader: { file: 'pack.wgsl', text: packShader }, bindings: { x: x!, w: w! }, params: { count, n } };
    if (format === 'f16' || format === 'bf16') {
      dispatch({ ...common, entry: format === 'f16' ? 'halves' : 'upper_halves', workgroups: Math.ceil(count / 2 / 64) });
      return;
    }
    const prologue = { BITS: format === 'int8' ? '8u' : '4u' };
    dispatch({ ...common, prologue, entry: 'scales', workgroups: Math.ceil((Math.ceil(count / n / 32) * n) / 64) });
    dispatch({ ...common, prologue, entry: 'levels', workgroups: Math.ceil(count / (format === 'int8' ? 4 : 8) / 64) });
  },
  flops: ([w]) => numel(w!.shape),
  grad: { notDifferentiable: 'it writes in place' },
  mutates: [0],
  weightInput: (_, { table }) => ({ index: 0, table }),
});

/** The numbers of a packed parameter as f32. */
export const unpack = (w: Tensor, table: boolean): Tensor => w.graph.add1(unpackOp, [w], { table });

/** Writes f32 `x` into the parameter `w`, in the format in which its memory is packed (see `BufferView.packed`). */
export function packInto(w: Tensor, x: Tensor, table = false): void {
  check(w.kind === 'parameter', 'shape', () => `pack_into: ${w} is a ${w.kind}; only parameters are packed`);
  w.graph.add(packedInto, [w, x], { table });
}
