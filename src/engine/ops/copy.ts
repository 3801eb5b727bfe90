/**
 * Ops that only move elements: transpose, concat, slice, split, pad. All are strided copies of boxes (shaders/copy.wgsl), of every
 * element type, and exact.
 */
import concatShader from '../../../shaders/concat.wgsl';
import copyShader from '../../../shaders/copy.wgsl';
import transposeShader from '../../../shaders/transpose.wgsl';
import { check } from '../errors';
import type { Tensor, TensorSpec } from '../graph';
import { defineOp, opTests, type Bindable, type LowerContext, type OpTests, type RefTensor } from '../op';
import { dtypeBytes, numel, showShape, strides, type DType, type Shape } from '../shape';
import { expand } from './pointwise';
import { reshape } from './reshape';

const maxRank = 6;

/** A box of `dims` elements copied from one tensor to another; strides and offsets in elements. Without `from`, zeros. */
export interface StridedCopy {
  readonly from?: Bindable;
  readonly to: Bindable;
  readonly dims: Shape;
  readonly fromStrides?: readonly number[];
  readonly fromOffset?: number;
  readonly toStrides: readonly number[];
  readonly toOffset?: number;
}

interface Dim {
  readonly size: number;
  readonly from: number;
  readonly to: number;
}

/** Dimensions without those of size 1, merged where both sides step through two as through one. Innermost first. */
function collapse(dims: Shape, from: readonly number[], to: readonly number[]): Dim[] {
  const out: Dim[] = [];
  for (let d = dims.length - 1; d >= 0; d--) {
    const next: Dim = { size: dims[d]!, from: from[d]!, to: to[d]! };
    if (next.size === 1) continue;
    const last = out[out.length - 1];
    if (last && next.from === last.from * last.size && next.to === last.to * last.size) out[out.length - 1] = { ...last, size: last.size * next.size };
    else out.push(next);
  }
  return out.length ? out : [{ size: 1, from: 1, to: 1 }];
}

const storedAs = (dtype: DType, width: 1 | 4): string => {
  const scalar = dtype === 'f16' ? 'f16' : 'u32';
  return width === 4 ? `vec4<${scalar}>` : scalar;
};

const multiplesOf4 = (...values: readonly number[]): boolean => values.every((v) => v % 4 === 0);

/** Emits one strided copy. `variant` forces `direct`, or `blocks` and `tiled` where the copy is a transposition that they can do. */
export function emitCopy({ dispatch, profile, variant }: Pick<LowerContext<never>, 'dispatch' | 'profile' | 'variant'>, copy: StridedCopy): void {
  const { from, to, fromOffset = 0, toOffset = 0 } = copy;
  const dims = collapse(copy.dims, copy.fromStrides ?? copy.toStrides, copy.toStrides);
  if (from && emitTransposition({ dispatch, profile, variant }, from, to, dims, fromOffset, toOffset)) return;

  const inner = dims[0]!;
  const width = inner.from === 1 && inner.to === 1 && multiplesOf4(inner.size, fromOffset, toOffset, ...dims.slice(1).flatMap((d) => [d.from, d.to])) ? 4 : 1;
  const params: Record<string, number> = { count: dims.reduce((n, d) => n * d.size, 1) / width, x_offset: fromOffset / width, y_offset: toOffset / width };
  for (let d = 0; d < maxRank; d++) {
    const { size, from: x, to: y } = dims[d] ?? { size: 1, from: 0, to: 0 };
    params[`n${d}`] = d === 0 ? size / width : size;
    params[`x${d}`] = d === 0 ? x : x / width;
    params[`y${d}`] = d === 0 ? y : y / width;
  }
  dispatch({
    shader: { file: 'copy.wgsl', text: copyShader },
    entry: from ? 'forward' : 'fill',
    prologue: { T: storedAs(to.dtype, width), RANK: `${dims.length}u` },
    bindings: from ? { x: from, y: to } : { y: to },
    params,
    workgroups: Math.ceil(params.count! / 64),
    cost: { flops: 0, bytes: dims.reduce((n, d) => n * d.size, 1) * dtypeBytes[to.dtype] * (from ? 2 : 1) },
  });
}

function emitTransposition({ dispatch, profile, variant }: Pick<LowerContext<never>, 'dispatch' | 'profile' | 'variant'>, from: Bindable, to: Bindable, dims: readonly Dim[], fromOffset: number, toOffset: number): boolean {
  const column = dims.find((d) => d.to === 1);
  const row = dims.find((d) => d.from === 1);
  if (!row || !column || row === column) return false;
  const batch = dims.filter((d) => d !== row && d !== column);
  const divisible = multiplesOf4(row.size, row.to, column.size, column.from, fromOffset, toOffset, ...batch.flatMap((d) => [d.from, d.to]));
  // Few rows or columns would leave most of a tile empty; neighbouring invocations then share cache lines anyway.
  const chosen = variant ?? (profile.kind === 'software' ? 'blocks' : Math.min(row.size, column.size) >= 16 ? 'tiled' : divisible ? 'blocks' : 'direct');
  if (chosen === 'direct' || (chosen === 'blocks' && !divisible)) return false;
  const count = batch.reduce((n, d) => n * d.size, 1);
  const params: Record<string, number> = { rows: row.size, columns: column.size, batch: count, x_column: column.from, y_row: row.to, x_offset: fromOffset, y_offset: toOffset };
  for (let d = 0; d < maxRank - 2; d++) {
    const { size, from: x, to: y } = batch[d] ?? { size: 1, from: 0, to: 0 };
    // The outermost index is what remains, so its size is not needed.
    if (d < maxRank - 3) params[`n${d}`] = size;
    params[`x${d}`] = x;
    params[`y${d}`] = y;
  }
  dispatch({
    shader: { file: 'transpose.wgsl', text: transposeShader },
    entry: chosen,
    prologue: { T: storedAs(to.dtype, 1), T4: storedAs(to.dtype, 4) },
    bindings: chosen === 'blocks' ? { x_blocks: from, y_blocks: to } : { x: from, y: to },
    params,
    cost: { flops: 0, bytes: 2 * row.size * column.size * count * dtypeBytes[to.dtype] },
    workgroups: chosen === 'blocks' ? Math.ceil((row.size * column.size * count) / 16 / 64) : Math.ceil(row.size / 32) * Math.ceil(column.size / 32) * count,
  });
  return true;
}

/** Emits zeros over the whole of `to`. */
export const emitZeros = (ctx: Pick<LowerContext<never>, 'dispatch' | 'profile' | 'variant'>, to: Bindable): void =>
  emitCopy(ctx, { to, dims: [numel(to.shape)], toStrides: [1] });

function checkAxis(shape: Shape, axis: number): void {
  check(shape.length <= maxRank, 'shape', () => `${showShape(shape)} has ${shape.length} dimensions, at most ${maxRank} can be copied`);
  check(Number.isInteger(axis) && axis >= 0 && axis < shape.length, 'shape', () => `axis ${axis} is not one of ${showShape(shape)}`);
}

const withDim = (shape: Shape, axis: number, size: number): number[] => shape.map((d, i) => (i === axis ? size : d));
const fromEnd = (axis: number, rank: number): number => (axis < 0 ? axis + rank : axis);

const transposeOp = defineOp<{ permutation: readonly number[] }>({
  name: 'transpose',
  doc: 'Dimensions in another order: dimension i of the result is dimension permutation[i] of x (torch.permute).',
  infer([x], { permutation }) {
    const rank = x!.shape.length;
    check(rank <= maxRank, 'shape', () => `${showShape(x!.shape)} has ${rank} dimensions, at most ${maxRank} can be copied`);
    check(permutation.length === rank && x!.shape.every((_, i) => permutation.includes(i)), 'shape', () => `[${permutation}] is no order of the ${rank} dimensions of ${showShape(x!.shape)}`);
    return [{ shape: permutation.map((p) => x!.shape[p]!), dtype: x!.dtype }];
  },
  lower(ctx) {
    const [x, y] = [ctx.inputs[0]!, ctx.outputs[0]!];
    const own = strides(x.shape);
    emitCopy(ctx, { from: x, to: y, dims: y.shape, fromStrides: ctx.attrs.permutation.map((p) => own[p]!), toStrides: strides(y.shape) });
  },
  flops: () => 0,
  grad: ({ outputGrads, attrs: { permutation } }) => [transpose(outputGrads[0]!, permutation.map((_, i) => permutation.indexOf(i)))],
  variants: ['direct', 'blocks', 'tiled'],
});

/** `x` with its dimensions in another order (torch.permute): dimension i of the result is dimension `permutation[i]` of `x`. */
export function transpose(x: Tensor, permutation: readonly number[]): Tensor {
  const moved = permutation.filter((p) => x.shape[p] !== 1);
  // Only dimensions of size 1 change place: the elements stay where they are.
  if (permutation.length === x.shape.length && new Set(permutation).size === x.shape.length && moved.every((p, i) => i === 0 || moved[i - 1]! < p)) return reshape(x, permutation.map((p) => x.shape[p]!));
  return x.graph.add1(transposeOp, [x], { permutation });
}

/** Copies the box of `small`'s size that begins at `start` along `axis` of `large`, into or out of it. */
function emitBox(ctx: Pick<LowerContext<never>, 'dispatch' | 'profile' | 'variant'>, small: Tensor, large: Tensor, axis: number, start: number, into: 'large' | 'small'): void {
  const outer = strides(large.shape);
  const offset = start * outer[axis]!;
  if (into === 'large') emitCopy(ctx, { from: small, to: large, dims: small.shape, fromStrides: strides(small.shape), toStrides: outer, toOffset: offset });
  else emitCopy(ctx, { from: large, to: small, dims: small.shape, fromStrides: outer, fromOffset: offset, toStrides: strides(small.shape) });
}

const concatOp = defineOp<{ axis: number }>({
  name: 'concat',
  doc: 'Tensors behind one another along an axis (torch.cat), any number of them.',
  infer(inputs, { axis }) {
    const first = inputs[0]!;
    checkAxis(first.shape, axis);
    for (const t of inputs) {
      check(t.shape.length === first.shape.length && t.shape.every((d, i) => i === axis || d === first.shape[i]), 'shape', () => `${showShape(first.shape)} and ${showShape(t.shape)} differ in more than axis ${axis}`);
      check(t.dtype === first.dtype, 'shape', () => `${first.dtype} and ${t.dtype} cannot be joined: cast one of them`);
    }
    return [{ shape: withDim(first.shape, axis, inputs.reduce((n, t) => n + t.shape[axis]!, 0)), dtype: first.dtype }];
  },
  lower(ctx) {
    const [a, b] = ctx.inputs;
    const [y] = ctx.outputs;
    if (ctx.inputs.length === 2) {
      const rowOf = (t: Tensor) => numel(t.shape.slice(ctx.attrs.axis));
      const width = multiplesOf4(rowOf(a!), rowOf(b!)) ? 4 : 1;
      const count = numel(y!.shape) / width;
      return ctx.dispatch({
        shader: { file: 'concat.wgsl', text: concatShader },
        entry: 'forward',
        prologue: { T: storedAs(y!.dtype, width) },
        bindings: { a: a!, b: b!, y: y! },
        params: { count, a: rowOf(a!) / width, b: rowOf(b!) / width },
        workgroups: Math.ceil(count / 64),
      });
    }
    let start = 0;
    for (const x of ctx.inputs) {
      emitBox(ctx, x, ctx.outputs[0]!, ctx.attrs.axis, start, 'large');
      start += x.shape[ctx.attrs.axis]!;
    }
  },
  flops: () => 0,
  grad({ inputs, outputGrads, attrs: { axis }, needs }) {
    let start = 0;
    return inputs.map((x, i) => {
      const size = x.shape[axis]!;
      start += size;
      return needs[i] ? slice(outputGrads[0]!, axis, start - size, size) : undefined;
    });
  },
});

/** `tensors` behind one another along `axis` (torch.cat). */
export function concat(tensors: readonly Tensor[], axis: number): Tensor {
  check(tensors.length > 0, 'shape', () => 'concat: there must be at least one tensor');
  const first = tensors[0]!;
  return tensors.length === 1 ? first : first.graph.add1(concatOp, tensors, { axis: fromEnd(axis, first.shape.length) });
}

const sliceOp = defineOp<{ axis: number; start: number; size: number }>({
  name: 'slice',
  doc: 'The part [start, start + size) of an axis (torch.narrow).',
  infer([x], { axis, start, size }) {
    checkAxis(x!.shape, axis);
    check(Number.isInteger(start) && Number.isInteger(size) && start >= 0 && size >= 1 && start + size <= x!.shape[axis]!, 'shape', () => `[${start}, ${start + size}) is no part of axis ${axis} of ${showShape(x!.shape)}`);
    return [{ shape: withDim(x!.shape, axis, size), dtype: x!.dtype }];
  },
  lower: (ctx) => emitBox(ctx, ctx.outputs[0]!, ctx.inputs[0]!, ctx.attrs.axis, ctx.attrs.start, 'small'),
  flops: () => 0,
  grad: ({ inputs: [x], outputGrads, attrs: { axis, start, size } }) => [pad(outputGrads[0]!, axis, start, x!.shape[axis]! - start - size)],
});

/** The part [start, start + size) of `axis` of `x` (torch.narrow). */
export function slice(x: Tensor, axis: number, start: number, size: number): Tensor {
  const at = fromEnd(axis, x.shape.length);
  return start === 0 && size === x.shape[at] ? x : x.graph.add1(sliceOp, [x], { axis: at, start, size });
}

const padOp = defineOp<{ axis: number; before: number; after: number }>({
  name: 'pad',
  doc: 'Zeros before and after x along an axis (torch.nn.functional.pad): what is the gradient of slice.',
  infer([x], { axis, before, after }) {
    checkAxis(x!.shape, axis);
    check(Number.isInteger(before) && Number.isInteger(after) && before >= 0 && after >= 0, 'shape', () => `cannot pad by ${before} and ${after}`);
    return [{ shape: withDim(x!.shape, axis, x!.shape[axis]! + before + after), dtype: x!.dtype }];
  },
  lower(ctx) {
    const { axis, before, after } = ctx.attrs;
    const [x, y] = [ctx.inputs[0]!, ctx.outputs[0]!];
    emitBox(ctx, x, y, axis, before, 'large');
    const toStrides = strides(y.shape);
    const size = x.shape[axis]!;
    for (const [start, width] of [[0, before], [before + size, after]] as const) {
      if (width > 0) emitCopy(ctx, { to: y, dims: withDim(y.shape, axis, width), toStrides, toOffset: start * toStrides[axis]! });
    }
  },
  flops: () => 0,
  grad: ({ inputs: [x], outputGrads, attrs: { axis, before } }) => [slice(outputGrads[0]!, axis, before, x!.shape[axis]!)],
});

/** `x` with `before` and `after` zeros around it along `axis`. */
export function pad(x: Tensor, axis: number, before: number, after: number): Tensor {
  return before === 0 && after === 0 ? x : x.graph.add1(padOp, [x], { axis: fromEnd(axis, x.shape.length), before, after });
}

const splitOp = defineOp<{ axis: number; sizes: readonly number[] }>({
  name: 'split',
  doc: 'Parts of the given sizes along an axis (torch.split), one output each.',
  infer([x], { axis, sizes }) {
    checkAxis(x!.shape, axis);
    check(sizes.every((s) => Number.isInteger(s) && s >= 1) && sizes.reduce((a, b) => a + b, 0) === x!.shape[axis], 'shape', () => `sizes ${sizes.join(', ')} do not add up to axis ${axis} of ${showShape(x!.shape)}`);
    return sizes.map((s): TensorSpec => ({ shape: withDim(x!.shape, axis, s), dtype: x!.dtype }));
  },
  lower(ctx) {
    let start = 0;
    for (const y of ctx.outputs) {
      emitBox(ctx, y, ctx.inputs[0]!, ctx.attrs.axis, start, 'small');
      start += y.shape[ctx.attrs.axis]!;
    }
  },
  flops: () => 0,
  grad({ graph, inputs: [x], outputs, outputGrads, attrs: { axis } }) {
    const zeros = (like: Tensor) => expand(graph.constant('zero', x!.shape.map(() => 1), Float32Array.of(0)), like.shape);
    return [concat(outputs.map((y, i) => outputGrads[i] ?? zeros(y)), axis)];
  },
});

/** Parts of `x` of the given sizes along `axis` (torch.split). */
export function split(x: Tensor, axis: number, sizes: readonly number[]): Tensor[] {
  return x.graph.add(splitOp, [x], { axis: fromEnd(axis, x.shape.length), sizes });
}

/** Element of `data` at coordinates `c` of `shape`. */
const at = (t: RefTensor, c: readonly number[]): number => t.data[strides(t.shape).reduce((n, s, i) => n + s * c[i]!, 0)]!;

/** A new tensor whose element at c is `value(c)`. */
function fromCoordinates(shape: Shape, value: (c: number[]) => number): Float64Array {
  const own = strides(shape);
  return Float64Array.from({ length: numel(shape) }, (_, i) => value(shape.map((d, k) => Math.floor(i / own[k]!) % d)));
}

const shiftAxis = (c: readonly number[], axis: number, by: number): number[] => c.map((v, i) => (i === axis ? v + by : v));

export const tests: OpTests<never>[] = [
  opTests<{ permutation: readonly number[] }>({
    op: transposeOp,
    reference: ([x], { permutation }) => [fromCoordinates(permutation.map((p) => x!.shape[p]!), (c) => at(x!, x!.shape.map((_, i) => c[permutation.indexOf(i)]!)))],
    cases: [
      { name: 'NHWC to NCHW, odd', inputs: [{ shape: [2, 5, 7, 3] }], attrs: { permutation: [0, 3, 1, 2] }, tolerance: 0 },
      { name: 'NCHW to NHWC', inputs: [{ shape: [3, 8, 6, 6] }], attrs: { permutation: [0, 2, 3, 1] }, tolerance: 0 },
      { name: 'one beyond a tile', inputs: [{ shape: [2, 33, 65] }], attrs: { permutation: [0, 2, 1] }, tolerance: 0 },
      { name: 'heads', inputs: [{ shape: [2, 9, 4, 8] }], attrs: { permutation: [0, 2, 1, 3] }, tolerance: 0 },
      { name: 'six dimensions, four of them batch', inputs: [{ shape: [3, 4, 2, 3, 2, 8] }], attrs: { permutation: [2, 5, 3, 0, 4, 1] }, tolerance: 0 },
      { name: 'six dimensions reversed', inputs: [{ shape: [2, 3, 2, 3, 2, 5] }], attrs: { permutation: [5, 4, 3, 2, 1, 0] }, tolerance: 0 },
      { name: 'integers', inputs: [{ shape: [17, 20], dtype: 'i32', fill: { int: 1000 } }], attrs: { permutation: [1, 0] }, tolerance: 0, skipGrad: true },
      { name: 'one element', inputs: [{ shape: [1, 1] }], attrs: { permutation: [1, 0] }, tolerance: 0 },
      { name: 'U-Net activations to NCHW', inputs: [{ shape: [4, 32, 32, 128] }], attrs: { permutation: [0, 3, 1, 2] }, tolerance: 0, skipGrad: true, bench: true },
    ],
  }),
  opTests<{ axis: number }>({
    op: concatOp,
    reference(inputs, { axis }) {
      const shape = withDim(inputs[0]!.shape, axis, inputs.reduce((n, t) => n + t.shape[axis]!, 0));
      return [
        fromCoordinates(shape, (c) => {
          let start = 0;
          for (const t of inputs) {
            if (c[axis]! < start + t.shape[axis]!) return at(t, shiftAxis(c, axis, -start));
            start += t.shape[axis]!;
          }
          throw new Error('outside');
        }),
      ];
    },
    cases: [
      { name: 'channels, odd', inputs: [{ shape: [2, 3, 3, 5] }, { shape: [2, 3, 3, 7] }, { shape: [2, 3, 3, 1] }], attrs: { axis: 3 }, tolerance: 0 },
      { name: 'channels, vec4', inputs: [{ shape: [2, 3, 3, 8] }, { shape: [2, 3, 3, 4] }], attrs: { axis: 3 }, tolerance: 0 },
      { name: 'vec4 and odd', inputs: [{ shape: [3, 8] }, { shape: [3, 3] }, { shape: [3, 4] }], attrs: { axis: 1 }, tolerance: 0 },
      { name: 'batch', inputs: [{ shape: [1, 5] }, { shape: [2, 5] }], attrs: { axis: 0 }, tolerance: 0 },
      { name: 'ten tensors', inputs: Array.from({ length: 10 }, (_, i) => ({ shape: [2, i + 1, 3] })), attrs: { axis: 1 }, tolerance: 0 },
      { name: 'integers', inputs: [{ shape: [3, 2], dtype: 'u32', fill: { int: 9 } }, { shape: [3, 1], dtype: 'u32', fill: { int: 9 } }], attrs: { axis: 1 }, tolerance: 0, skipGrad: true },
      { name: 'U-Net skip connection', inputs: [{ shape: [4, 16, 16, 256] }, { shape: [4, 16, 16, 128] }], attrs: { axis: 3 }, tolerance: 0, skipGrad: true, bench: true },
    ],
  }),
  opTests<{ axis: number; start: number; size: number }>({
    op: sliceOp,
    reference: ([x], { axis, start, size }) => [fromCoordinates(withDim(x!.shape, axis, size), (c) => at(x!, shiftAxis(c, axis, start)))],
    cases: [
      { name: 'middle of the channels', inputs: [{ shape: [2, 3, 11] }], attrs: { axis: 2, start: 3, size: 5 }, tolerance: 0 },
      { name: 'vec4', inputs: [{ shape: [2, 3, 16] }], attrs: { axis: 2, start: 4, size: 8 }, tolerance: 0 },
      { name: 'vec4 size at an odd start', inputs: [{ shape: [2, 3, 16] }], attrs: { axis: 2, start: 3, size: 8 }, tolerance: 0 },
      { name: 'end of the batch', inputs: [{ shape: [5, 3] }], attrs: { axis: 0, start: 4, size: 1 }, tolerance: 0 },
      { name: 'more than 65,535 workgroups', inputs: [{ shape: [65535 * 64 + 68], dtype: 'u32', fill: { int: 1 << 30 } }], attrs: { axis: 0, start: 3, size: 65535 * 64 + 65 }, tolerance: 0, skipGrad: true },
      { name: 'integers', inputs: [{ shape: [7], dtype: 'i32', fill: { int: 99 } }], attrs: { axis: 0, start: 2, size: 4 }, tolerance: 0, skipGrad: true },
    ],
  }),
  opTests<{ axis: number; before: number; after: number }>({
    op: padOp,
    reference: ([x], { axis, before, after }) => [
      fromCoordinates(withDim(x!.shape, axis, x!.shape[axis]! + before + after), (c) => (c[axis]! < before || c[axis]! >= before + x!.shape[axis]! ? 0 : at(x!, shiftAxis(c, axis, -before)))),
    ],
    cases: [
      { name: 'both sides', inputs: [{ shape: [2, 3, 5] }], attrs: { axis: 1, before: 2, after: 1 }, tolerance: 0 },
      { name: 'vec4', inputs: [{ shape: [2, 3, 8] }], attrs: { axis: 2, before: 4, after: 8 }, tolerance: 0 },
      { name: 'one side of the innermost', inputs: [{ shape: [3, 5] }], attrs: { axis: 1, before: 0, after: 1 }, tolerance: 0 },
    ],
  }),
  opTests<{ axis: number; sizes: readonly number[] }>({
    op: splitOp,
    reference([x], { axis, sizes }) {
      let start = 0;
      return sizes.map((size) => {
        const from = start;
        start += size;
        return fromCoordinates(withDim(x!.shape, axis, size), (c) => at(x!, shiftAxis(c, axis, from)));
      });
    },
    cases: [
      { name: 'uneven', inputs: [{ shape: [3, 9, 2] }], attrs: { axis: 1, sizes: [2, 6, 1] }, tolerance: 0 },
      { name: 'query, key and value', inputs: [{ shape: [2, 5, 24] }], attrs: { axis: 2, sizes: [8, 8, 8] }, tolerance: 0 },
    ],
  }),
] as unknown as OpTests<never>[];
