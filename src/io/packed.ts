/**
 * Weights packed for GPU memory, on the host: how each format lies in its words (shaders/lib/weights_half.wgsl and weights_blocks.wgsl read them).
 *
 * A weight is a matrix of `columns` output channels whose rows run along the reduction ([in,out] and [R·S·C,K]).
 * - `f16`, `bf16`: row-major, two to a word. Exact in f32; numbers that came from such a file lose nothing.
 * - `int8`, `int4`: 32 neighbours of a column, along the reduction, share one f32 scale; a weight is scale · level. Rows lie in bands of 32: a band
 *   has `columns` scales and then the levels of its rows, row-major, four or eight to a word: 9 and 5 bits a weight. int8 levels are −127 … 127,
 *   scaled to the largest magnitude; int4 levels are −8 … 7, scaled so that the number of largest magnitude is −8, which halves no range (as ggml's Q4_0).
 *   A table of embeddings, which is not summed, is packed as one column: its blocks lie along its rows.
 */
import type { PackedFormat } from '../engine/buffer_view';
import { bf16ToF32, f16ToF32, f32ToBf16, f32ToF16 } from './half';
import { packBlocks, scaleWords, unpackBlocks } from './packed_blocks';

const bits: Readonly<Record<PackedFormat, number>> = { f16: 16, bf16: 16, int8: 8, int4: 4 };

/** Whether 32 numbers share a scale. */
export const isQuantised = (format: PackedFormat): format is 'int8' | 'int4' => format === 'int8' || format === 'int4';

/** Bytes of `count` packed weights of `columns` columns. */
export function packedBytes(format: PackedFormat, count: number, columns: number): number {
  return 4 * ((isQuantised(format) ? scaleWords(count, columns) : 0) + Math.ceil((count * bits[format]) / 32));
}

/**
 * Packs row-major `data`. Numbers round to nearest; f16 overflows to infinity as {@link f32ToF16} does.
 * @param columns Divides data.length; for int8 and int4 a multiple of 4, or 1 for a table.
 */
export function pack(format: PackedFormat, data: Float32Array, columns: number): Uint32Array<ArrayBuffer> {
  const words = new Uint32Array(packedBytes(format, data.length, columns) / 4);
  if (isQuantised(format)) packBlocks(format === 'int8', data, columns, words);
  else new Uint16Array(words.buffer).set(format === 'f16' ? f32ToF16(data) : f32ToBf16(data));
  return words;
}

/** The numbers that packed words stand for: exactly what kernels compute with. */
export function unpack(format: PackedFormat, words: Uint32Array, count: number, columns: number): Float32Array<ArrayBuffer> {
  if (isQuantised(format)) return unpackBlocks(format === 'int8', words, count, columns);
  const halves = new Uint16Array(words.buffer, words.byteOffset, count);
  return format === 'f16' ? f16ToF32(halves) : bf16ToF32(halves);
}
