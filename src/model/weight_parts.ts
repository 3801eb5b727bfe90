/** Weights longer than a device's bindings, in parts: ranges of rows of a table, else of output channels. Kernels read each part as a weight of its own. */
import { numel, type Shape } from '../engine/shape';

/**
 * The fewest shapes along the axis that take at most `limit` bytes each, their sizes divisible by 4 but for the last; none where even 4 rows or channels
 * take more.
 * @param whole As stored: [rows,width] of a table, else with output channels last.
 */
export function partShapes(whole: Shape, table: boolean, bytesOf: (shape: Shape) => number, limit: number): Shape[] {
  const axis = table ? 0 : whole.length - 1;
  const ofSize = (size: number): Shape => whole.map((d, i) => (i === axis ? size : d));
  let size = Math.floor(whole[axis]! / 4) * 4;
  while (size > 0 && bytesOf(ofSize(size)) > limit) size -= 4;
  if (size === 0) return [];
  return Array.from({ length: Math.ceil(whole[axis]! / size) }, (_, i) => ofSize(Math.min(size, whole[axis]! - i * size)));
}

/** The part of a stored weight that begins at row or output channel `first`. */
export function partOf(stored: Float32Array, table: boolean, first: number, shape: Shape): Float32Array {
  if (table) return stored.slice(first * shape[1]!, first * shape[1]! + numel(shape));
  const columns = shape.at(-1)!;
  const rows = numel(shape) / columns;
  const part = new Float32Array(rows * columns);
  for (let r = 0, from = first; r < rows; r++, from += stored.length / rows) part.set(stored.subarray(from, from + columns), r * columns);
  return part;
}

/** The whole weight again. */
export function joinParts(parts: readonly Float32Array[], table: boolean, shapes: readonly Shape[], whole: Shape): Float32Array {
  const stored = new Float32Array(numel(whole));
  const width = table ? stored.length : whole.at(-1)!;
  let first = 0;
  for (const [i, part] of parts.entries()) {
    const columns = table ? part.length : shapes[i]!.at(-1)!;
    for (let from = 0, to = first; from < part.length; from += columns, to += width) stored.set(part.subarray(from, from + columns), to);
    first += columns;
  }
  return stored;
}
