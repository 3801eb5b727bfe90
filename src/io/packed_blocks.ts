/** Levels and scales of int8 and int4 weights: see packed.ts. */

const BAND = 32;

/** Words of scales. */
export const scaleWords = (count: number, columns: number): number => Math.ceil(count / columns / BAND) * columns;

/** First word of a band's scales, first word of its levels, and its rows: [first, end). */
function* bands(wide: boolean, rows: number, columns: number): Generator<{ readonly scales: number; readonly levels: number; readonly first: number; readonly end: number }> {
  const words = columns * (wide ? 9 : 5);
  for (let first = 0; first < rows; first += BAND) {
    const scales = (first / BAND) * words;
    yield { scales, levels: scales + columns, first, end: Math.min(first + BAND, rows) };
  }
}

/** Fills `words`, which are 0, with `data`; `wide` levels have 8 bits, others 4. */
export function packBlocks(wide: boolean, data: Float32Array, columns: number, words: Uint32Array<ArrayBuffer>): void {
  const scales = new Float32Array(words.buffer);
  for (const band of bands(wide, data.length / columns, columns)) {
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
}

export function unpackBlocks(wide: boolean, words: Uint32Array, count: number, columns: number): Float32Array<ArrayBuffer> {
  const data = new Float32Array(count);
  const scales = new Float32Array(words.buffer, words.byteOffset, words.length);
  for (const band of bands(wide, count / columns, columns)) {
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
