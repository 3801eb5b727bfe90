import { encode } from 'fast-png';
import { check } from '../engine/errors';
import { drawText, GLYPH_HEIGHT, textWidth } from './bitmap_font';
import type { Raster } from './decode_image';

/** [N,C,H,W] images, C 1 or 3, f32 in [0,1]. */
export interface ImageBatch {
  readonly data: Float32Array;
  readonly shape: readonly [number, number, number, number];
}

/** A value in [0,1] as a byte, round(255 x); outside it is clamped, NaN becomes 0. */
export function toByte(x: number): number {
  return x > 0 ? Math.round(Math.min(x, 1) * 255) : 0;
}

/**
 * Encodes a picture as PNG. `text` becomes tEXt chunks (keyword: value), the place where tools look for generation
 * parameters; characters outside Latin-1, which tEXt does not allow, are written as JSON's \uXXXX.
 */
export function encodePng(raster: Raster, text: Readonly<Record<string, string>> = {}): Uint8Array {
  const latin1 = Object.fromEntries(Object.entries(text).map(([k, v]) => [k, v.replace(/[\u0100-\uffff]/g, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, '0')}`)]));
  return encode({ ...raster, depth: 8, text: latin1 }, { zlib: { level: 6 } });
}

function checkBatch({ data, shape: [n, c, h, w] }: ImageBatch): void {
  check(c === 1 || c === 3, 'shape', () => `images [${[n, c, h, w]}] have ${c} channels; a picture has 1 (grey) or 3 (RGB).`);
  check(data.length === n * c * h * w, 'shape', () => `images: ${data.length} values are not [${[n, c, h, w]}].`);
}

/** Image `index` of a batch as a picture. */
export function imageRaster(images: ImageBatch, index: number): Raster {
  checkBatch(images);
  const [count, channels, height, width] = images.shape;
  check(index >= 0 && index < count, 'input', () => `image ${index} of a batch of ${count}.`);
  const data = new Uint8Array(height * width * channels);
  const plane = height * width;
  for (let c = 0; c < channels; c++) {
    for (let p = 0; p < plane; p++) data[p * channels + c] = toByte(images.data[(index * channels + c) * plane + p]!);
  }
  return { width, height, channels: channels as 1 | 3, data };
}

export interface ImageGridOptions {
  /** Images in a row; default the whole number nearest above sqrt(N). */
  readonly columns?: number;
  /** Pixels of the result between cells and around them; default 2 * scale. */
  readonly padding?: number;
  /** A caption under each image, [N]. */
  readonly labels?: readonly string[];
  /** A caption left of each row. */
  readonly rowLabels?: readonly string[];
  /** A caption above each column. */
  readonly columnLabels?: readonly string[];
  /** Each image pixel becomes scale x scale pixels; default the least whole number that makes images 64 high, at most 8. */
  readonly scale?: number;
}

const BACKGROUND = 255;
const INK = 40;

/** Lays a batch out as a grid, left to right and top to bottom, dark captions on white. Too long captions are cut. */
export function imageGrid(images: ImageBatch, options: ImageGridOptions = {}): Raster {
  checkBatch(images);
  const [count, channels, height, width] = images.shape;
  check(count > 0, 'shape', () => 'image grid: the batch has no images.');
  const columns = options.columns ?? Math.ceil(Math.sqrt(count));
  const scale = options.scale ?? Math.min(8, Math.max(1, Math.ceil(64 / height)));
  const padding = options.padding ?? 2 * scale;
  const { labels, rowLabels, columnLabels } = options;
  const rows = Math.ceil(count / columns);
  check(Number.isInteger(columns) && columns > 0, 'input', () => `image grid: columns ${columns} must be a whole number above 0.`);
  check(Number.isInteger(scale) && scale > 0, 'input', () => `image grid: scale ${scale} must be a whole number above 0.`);
  check(Number.isInteger(padding) && padding >= 0, 'input', () => `image grid: padding ${padding} must be a whole number, 0 or more.`);
  for (const [what, given, wanted] of [['labels', labels, count], ['rowLabels', rowLabels, rows], ['columnLabels', columnLabels, columns]] as const) {
    check(!given || given.length === wanted, 'input', () => `image grid: ${given!.length} ${what} for ${wanted}.`);
  }

  const dots = Math.max(1, Math.round((height * scale) / 36)); // pixels to a font dot: text about a fifth of an image's height
  const line = GLYPH_HEIGHT * dots + 2 * dots;
  const cellWidth = width * scale;
  const cellHeight = height * scale + (labels ? line : 0);
  const left = padding + (rowLabels ? Math.max(...rowLabels.map(textWidth)) * dots + Math.max(padding, 3 * dots) : 0);
  const top = padding + (columnLabels ? line : 0);
  const gridWidth = left + columns * (cellWidth + padding);
  const gridHeight = top + rows * (cellHeight + padding);
  const data = new Uint8Array(gridWidth * gridHeight * channels).fill(BACKGROUND);

  /** Text centred between x and x + room, or from x when `room` is not given. */
  const caption = (text: string, x: number, y: number, room?: number): void => {
    let shown = text;
    while (room !== undefined && shown.length > 1 && textWidth(shown) * dots > room) shown = shown.slice(0, -1);
    const start = room === undefined ? x : x + Math.floor((room - textWidth(shown) * dots) / 2);
    drawText(shown, (dotX, dotY) => {
      for (let dy = 0; dy < dots; dy++) {
        const at = (y + dotY * dots + dy) * gridWidth + start + dotX * dots;
        data.fill(INK, at * channels, (at + dots) * channels);
      }
    });
  };

  for (let n = 0; n < count; n++) {
    const x0 = left + (n % columns) * (cellWidth + padding);
    const y0 = top + Math.floor(n / columns) * (cellHeight + padding);
    const cell = imageRaster(images, n);
    for (let y = 0; y < height * scale; y++) {
      for (let x = 0; x < cellWidth; x++) {
        const from = (Math.floor(y / scale) * width + Math.floor(x / scale)) * channels;
        const to = ((y0 + y) * gridWidth + x0 + x) * channels;
        for (let c = 0; c < channels; c++) data[to + c] = cell.data[from + c]!;
      }
    }
    if (labels) caption(labels[n]!, x0, y0 + height * scale + 2 * dots, cellWidth);
  }
  columnLabels?.forEach((text, i) => caption(text, left + i * (cellWidth + padding), padding, cellWidth));
  rowLabels?.forEach((text, i) => caption(text, padding, top + i * (cellHeight + padding) + Math.floor((height * scale - GLYPH_HEIGHT * dots) / 2)));
  return { width: gridWidth, height: gridHeight, channels: channels as 1 | 3, data };
}
