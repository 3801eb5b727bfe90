/** Dimensions, outermost first; tensors are row-major and contiguous. `[]` is a scalar. */
export type Shape = readonly number[];

/** Element type of a tensor in GPU memory. Arithmetic is always f32; f16 is a storage type. */
export type DType = 'f32' | 'f16' | 'i32' | 'u32';

export const dtypeBytes: Record<DType, number> = { f32: 4, f16: 2, i32: 4, u32: 4 };

/** Number of elements of `shape`. */
export const numel = (shape: Shape): number => shape.reduce((a, b) => a * b, 1);

/** `[2,3,16]`, as errors print shapes. */
export const showShape = (shape: Shape): string => `[${shape.join(',')}]`;

export const sameShape = (a: Shape, b: Shape): boolean => a.length === b.length && a.every((d, i) => d === b[i]);

/** Element strides of a contiguous tensor. */
export function strides(shape: Shape): number[] {
  const out = new Array<number>(shape.length).fill(1);
  for (let i = shape.length - 2; i >= 0; i--) out[i] = out[i + 1]! * shape[i + 1]!;
  return out;
}

/** NumPy's broadcasting of several shapes, or `undefined` where they do not broadcast. */
export function broadcastShapes(...shapes: Shape[]): number[] | undefined {
  const rank = Math.max(0, ...shapes.map((s) => s.length));
  const out = new Array<number>(rank).fill(1);
  for (const s of shapes) {
    for (let i = 0; i < s.length; i++) {
      const j = rank - s.length + i;
      if (s[i] === 1) continue;
      if (out[j] !== 1 && out[j] !== s[i]) return undefined;
      out[j] = s[i]!;
    }
  }
  return out;
}

/** Strides with which an input of shape `from` is read over `to`: 0 along broadcast dimensions. */
export function broadcastStrides(from: Shape, to: Shape): number[] {
  const own = strides(from);
  const lead = to.length - from.length;
  return to.map((_, i) => (i < lead || from[i - lead] === 1 ? 0 : own[i - lead]!));
}
