import { convertIndexedToRgb, decode as decodePng, hasPngSignature } from 'fast-png';
import { Unzlib } from 'fflate';
import { decode as decodeJpegData } from 'jpeg-js';
import { BruitError } from '../engine/errors';
import { checkImageSize, jpegSize, MAX_PIXELS } from './image_size';

/** A picture as bytes, [height,width,channels] with 1 (grey) or 3 (RGB) channels. */
export interface Raster {
  readonly width: number;
  readonly height: number;
  readonly channels: 1 | 3;
  readonly data: Uint8Array;
}

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

function rasterFromPng(bytes: Uint8Array, name: string): Raster {
  const png = decodePng(boundedPng(bytes, name), { checkCrc: true });
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

/** Samples a pixel by colour type. */
const PNG_SAMPLES: Readonly<Record<number, number>> = { 0: 1, 2: 3, 3: 1, 4: 2, 6: 4 };

/**
 * The file without its colour profile, which may unpack to any size, if it declares no more pixels than allowed and its data unpacks to no more than
 * they take: a few kilobytes of deflate could ask for gigabytes.
 */
function boundedPng(bytes: Uint8Array, name: string): Uint8Array {
  if (bytes.length < 33) return bytes; // the decoder says what is wrong
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const damaged = (what: string): never => {
    throw new BruitError('input', `${name}: damaged PNG (${what}).`);
  };
  const typeAt = (at: number): string => String.fromCharCode(...bytes.subarray(at + 4, at + 8));
  if (typeAt(8) !== 'IHDR' || view.getUint32(8) !== 13) damaged('it does not begin with an IHDR chunk');
  checkImageSize(bytes, name);
  const [width, height] = [view.getUint32(16), view.getUint32(20)];
  const bits = bytes[24]! * (PNG_SAMPLES[bytes[25]!] ?? 4);
  // Rows of interlaced passes, of which there are fewer than twice the height, have a byte for the filter and fill up their last.
  let left = Math.ceil((width * height * bits) / 8) + 4 * (height + 8);
  const inflate = new Unzlib((chunk) => {
    left -= chunk.length;
    if (left < 0) throw new BruitError('input', `${name}: its data unpacks to more than its ${width}x${height} pixels take.`);
  });
  const kept: Uint8Array[] = [];
  let from = 0;
  let at = 8;
  for (let type = ''; type !== 'IEND' && at + 12 <= bytes.length; ) {
    const next = at + 12 + view.getUint32(at);
    if (next > bytes.length) damaged('it ends within a chunk');
    type = typeAt(at);
    if (type === 'IHDR' && at > 8) damaged('it has two IHDR chunks');
    // In pieces, so that what one unpacks to is bounded, too.
    if (type === 'IDAT') for (let i = at + 8; i < next - 4; i += 2 ** 14) inflate.push(bytes.subarray(i, Math.min(i + 2 ** 14, next - 4)));
    if (type === 'iCCP') {
      kept.push(bytes.subarray(from, at));
      from = next;
    }
    at = next;
  }
  kept.push(bytes.subarray(from, at));
  if (kept.length === 1 && at === bytes.length) return bytes;
  const out = new Uint8Array(kept.reduce((n, part) => n + part.length, 0));
  kept.reduce((at, part) => (out.set(part, at), at + part.length), 0);
  return out;
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
  checkImageSize(bytes, name);
  const size = jpegSize(bytes);
  // formatAsRGBA false gives 3 channels, equal ones where the file is grey
  const { width, height, data, exifBuffer } = decodeJpegData(bytes, { useTArray: true, formatAsRGBA: false, maxResolutionInMP: MAX_PIXELS / 1e6, maxMemoryUsageInMB: 2048 }) as { width: number; height: number; data: Uint8Array; exifBuffer?: Uint8Array };
  const raster: Raster = size?.components === 1 ? { width, height, channels: 1, data: data.filter((_, i) => i % 3 === 0) } : { width, height, channels: 3, data };
  return upright(raster, exifBuffer ? exifOrientation(exifBuffer) : 1);
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
