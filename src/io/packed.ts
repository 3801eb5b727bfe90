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

const BAND = 32;
const bits: Readonly<Record<PackedFormat, number>> = { f16: 16, bf16: 16, int8: 8, int4: 4 };

/** Whether 32 numbers share a scale. */
export const isQuantised = (format: PackedFormat): format is 'int8' | 'int4' => format === 'int8' || format === 'int4';

/** Bytes of `count` packed weights of `columns` columns. */
export function packedBytes(format: PackedFormat, count: number, columns: number): number {
  const scales = isQuantised(format) ? Math.ceil(count / columns / BAND) * columns : 0;
  return 4 * (scales + Math.ceil((count * bits[format]) / 32));
}

/** First word of a band's scales, first word of its levels, and its rows: [first, end). */
function* bands(format: 'int8' | 'int4', rows: number, columns: number): Generator<{ readonly scales: number; readonly levels: number; readonly first: number; readonly end: number }> {
  const words = columns * (1 + bits[format]);
  for (let first = 0; first < rows; first += BAND) {
    const scales = (first / BAND) * words;
    yield { scales, levels: scales + columns, first, end: Math.min(first + BAND, rows) };
  }
}

/**
 * Packs row-major `data`. Numbers round to nearest; f16 overflows to infinity as {@link f32ToF16} does.
 * @param columns Divides data.length; for int8 and int4 a multiple of 4, or 1 for a table.
 */
export function pack(format: PackedFormat, data: Float32Array, columns: number): Uint32Array<ArrayBuffer> {
  const words = new Uint32Array(packedBytes(format, data.length, columns) / 4);
  if (!isQuantised(format)) {
    new Uint16Array(words.buffer).set(format === 'f16' ? f32ToF16(data) : f32ToBf16(data));
    return words;
  }
  const scales = new Float32Array(words.buffer);
  const wide = format === 'int8';
  for (const band of bands(format, data.length / columns, columns)) {
    for (let c = 0; c < columns; c++) {
      let extreme = 0;
      for (let r = band.first; r < band.end; r++) if (Math.abs(data[r * columns + c]!) > Math.abs(extreme)) extreme = data[r * columns + c]!;
      scales[band.scales + c] = wide ? Math.abs(extreme) / 127 : extreme / -8;
    }
    for (let r = band.first; r < band.end; r++) {
      for (let c = 0; c < columns; c++) {
        const scale = scales[band.scales + c]!;
        const x = scale === 0 ? 0 : Math.round(data[r * columns + c]! / scale);
        const level = wide ? Math.min(Math.max(x, -127), 127) : Math.min(Math.max(x, -8), 7);
        const i = (r - band.first) * columns + c;
        if (wide) words[band.levels + (i >>> 2)]! |= (level & 255) << (8 * (i & 3));
        else words[band.levels + (i >>> 3)]! |= (level & 15) << (4 * (i & 7));
      }
    }
  }
  return words;
}

/** The numbers that packed words stand for: exactly what kernels compute with. */
export function unpack(format: PackedFormat, words: Uint32Array, count: number, columns: number): Float32Array<ArrayBuffer> {
  if (!isQuantised(format)) {
    const halves = new Uint16Array(words.buffer, words.byteOffset, count);
    return format === 'f16' ? f16ToF32(halves) : bf16ToF32(halves);
  }
  const data = new Float32Array(count);
  const scales = new Float32Array(words.buffer, words.byteOffset, words.length);
  const wide = format === 'int8';
  for (const band of bands(format, count / columns, columns)) {
    for (let r = band.first; r < band.end; r++) {
      for (let c = 0; c < columns; c++) {
        const i = (r - band.first) * columns + c;
        const level = wide ? (words[band.levels + (i >>> 2)]! << (24 - 8 * (i & 3))) >> 24 : (words[band.levels + (i >>> 3)]! << (28 - 4 * (i & 7))) >> 28;
        data[r * columns + c] = scales[band.scales + c]! * level;
      }
    }
  }
  return data;
}
