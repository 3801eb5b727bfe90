import { convertIndexedToRgb, decode as decodePng, hasPngSignature } from 'fast-png';
import { decode as decodeJpegData } from 'jpeg-js';
import { BruitError } from '../engine/errors';

/** A picture as bytes, [height,width,channels] with 1 (grey) or 3 (RGB) channels. */
export interface Raster {
  readonly width: number;
  readonly height: number;
  readonly channels: 1 | 3;
  readonly data: Uint8Array;
}

/** Larger pictures are refused before they are unpacked: 100 million pixels. */
export const MAX_PIXELS = 100_000_000;

/**
 * Decodes a PNG (any colour type and depth) or JPEG (grey or colour; turned upright by its EXIF orientation), told apart
 * by content. Transparent pixels are laid over white. `name` goes into the errors (code `input`).
 */
export function decodeImage(bytes: Uint8Array, name: string): Raster {
  if (hasPngSignature(bytes.subarray(0, 8))) return guarded(name, 'PNG', () => rasterFromPng(bytes, name));
  if (bytes[0] === 0xff && bytes[1] === 0xd8) return guarded(name, 'JPEG', () => rasterFromJpeg(bytes, name));
  throw new BruitError('input', `${name}: neither a PNG nor a JPEG file (${bytes.length} bytes).`);
}

function guarded(name: string, kind: string, decode: () => Raster): Raster {
  try {
    return decode();
  } catch (cause) {
    if (cause instanceof BruitError) throw cause;
    throw new BruitError('input', `${name}: damaged ${kind} file: ${(cause as Error).message ?? String(cause)}.`, { cause });
  }
}

function checkPixels(width: number, height: number, name: string): void {
  if (width * height > MAX_PIXELS) throw new BruitError('input', `${name}: ${width}x${height} pixels are more than the ${MAX_PIXELS / 1e6} megapixels allowed; make it smaller first.`);
  if (width * height === 0) throw new BruitError('input', `${name}: has no pixels (${width}x${height}).`);
}

function rasterFromPng(bytes: Uint8Array, name: string): Raster {
  if (bytes.length >= 24) {
    const view = new DataView(bytes.buffer, bytes.byteOffset); // IHDR is always the first chunk
    checkPixels(view.getUint32(16), view.getUint32(20), name);
  }
  const png = decodePng(bytes, { checkCrc: true });
  const { width, height, depth } = png;
  let samples: ArrayLike<number> = png.data;
  let channels = png.channels;
  let most = 2 ** depth - 1;
  if (png.palette) {
    samples = convertIndexedToRgb(png);
    channels = png.palette[0]!.length;
    most = 255;
  } else if (depth < 8) samples = unpackBits(png.data, width, height, depth);
  const color = channels >= 3 ? 3 : 1;
  const hasAlpha = channels === 2 || channels === 4;
  const key = !png.palette && png.transparency; // tRNS of grey or RGB: the one colour that is transparent
  const data = new Uint8Array(width * height * color);
  for (let p = 0; p < width * height; p++) {
    const at = p * channels;
    let alpha = hasAlpha ? samples[at + color]! / most : 1;
    if (key && samples[at] === key[0] && (color === 1 || (samples[at + 1] === key[1] && samples[at + 2] === key[2]))) alpha = 0;
    for (let c = 0; c < color; c++) data[p * color + c] = Math.round(255 * (1 - alpha + (alpha * samples[at + c]!) / most));
  }
  return { width, height, channels: color, data };
}

/** Grey samples of 1, 2 or 4 bits, each row padded to a whole byte, as one number each. */
function unpackBits(packed: ArrayLike<number>, width: number, height: number, depth: number): Uint8Array {
  const rowBytes = Math.ceil((width * depth) / 8);
  return Uint8Array.from({ length: width * height }, (_, p) => {
    const bit = (p % width) * depth;
    return (packed[Math.floor(p / width) * rowBytes + (bit >> 3)]! >> (8 - depth - (bit & 7))) & (2 ** depth - 1);
  });
}

function rasterFromJpeg(bytes: Uint8Array, name: string): Raster {
  const size = jpegSize(bytes);
  if (size) checkPixels(size.width, size.height, name);
  // formatAsRGBA false gives 3 channels, equal ones where the file is grey
  const { width, height, data, exifBuffer } = decodeJpegData(bytes, { useTArray: true, formatAsRGBA: false, maxResolutionInMP: MAX_PIXELS / 1e6, maxMemoryUsageInMB: 2048 }) as { width: number; height: number; data: Uint8Array; exifBuffer?: Uint8Array };
  const raster: Raster = size?.components === 1 ? { width, height, channels: 1, data: data.filter((_, i) => i % 3 === 0) } : { width, height, channels: 3, data };
  return upright(raster, exifBuffer ? exifOrientation(exifBuffer) : 1);
}

/** Size and component count from a JPEG's frame header (SOF), read before any memory is taken for pixels. */
function jpegSize(bytes: Uint8Array): { width: number; height: number; components: number } | undefined {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let at = 2; at + 10 <= bytes.length; ) {
    if (bytes[at] !== 0xff) return undefined;
    const marker = bytes[at + 1]!;
    if (marker === 0xff) at++; // fill byte
    else if (marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker)) return { height: view.getUint16(at + 5), width: view.getUint16(at + 7), components: bytes[at + 9]! };
    else at += 2 + view.getUint16(at + 2);
  }
  return undefined;
}

/** The orientation tag (0x0112) of an EXIF block, 1 to 8; 1 where there is none. */
function exifOrientation(exif: Uint8Array): number {
  const start = exif[0] === 0 ? 1 : 0; // "Exif\0\0", of which the decoder strips one zero only
  const view = new DataView(exif.buffer, exif.byteOffset + start, exif.byteLength - start);
  if (view.byteLength < 14) return 1;
  const little = view.getUint16(0) === 0x4949;
  const directory = view.getUint32(4, little);
  if (directory + 2 > view.byteLength) return 1;
  const entries = view.getUint16(directory, little);
  for (let at = directory + 2; at + 12 <= Math.min(view.byteLength, directory + 2 + 12 * entries); at += 12) {
    if (view.getUint16(at, little) === 0x0112) return view.getUint16(at + 8, little);
  }
  return 1;
}

/** Undoes an EXIF orientation: 2-4 mirror or turn by half, 5-8 swap rows and columns as well. */
function upright(raster: Raster, orientation: number): Raster {
  if (orientation < 2 || orientation > 8) return raster;
  const { width: fromWidth, height: fromHeight, channels, data } = raster;
  const swap = orientation >= 5;
  const [width, height] = swap ? [fromHeight, fromWidth] : [fromWidth, fromHeight];
  const mirrorX = [2, 3, 7, 8].includes(orientation);
  const mirrorY = [3, 4, 6, 7].includes(orientation);
  const out = new Uint8Array(data.length);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const [u, v] = swap ? [y, x] : [x, y];
      const source = (mirrorY ? fromHeight - 1 - v : v) * fromWidth + (mirrorX ? fromWidth - 1 - u : u);
      for (let c = 0; c < channels; c++) out[(y * width + x) * channels + c] = data[source * channels + c]!;
    }
  }
  return { width, height, channels, data: out };
}
