/** What a picture says of its size, before any memory is taken for its pixels. */
import { BruitError } from '../engine/errors';

/** Larger pictures are refused before they are unpacked: 100 million pixels. */
export const MAX_PIXELS = 100_000_000;

export interface ImageSize {
  readonly width: number;
  readonly height: number;
}

/**
 * Looks at the size that the first bytes of a PNG, JPEG, GIF, WebP, AVIF or BMP declare; other formats pass.
 * @throws BruitError `input` naming the file, where that is none or more than {@link MAX_PIXELS}.
 */
export function checkImageSize(bytes: Uint8Array, name: string): void {
  const size = imageSize(bytes);
  if (!size) return;
  const { width, height } = size;
  if (width * height > MAX_PIXELS) throw new BruitError('input', `${name}: ${width}x${height} pixels are more than the ${MAX_PIXELS / 1e6} megapixels allowed; make it smaller first.`);
  if (width * height === 0) throw new BruitError('input', `${name}: has no pixels (${width}x${height}).`);
}

/** Size by the file's first bytes, or nothing where it is of another format or they do not tell. Where a format says it more than once, the largest counts. */
export function imageSize(bytes: Uint8Array): ImageSize | undefined {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const latin1 = (from: number, to: number): string => String.fromCharCode(...bytes.subarray(from, to));
  if (bytes.length >= 24 && view.getUint32(0) === 0x89504e47) return { width: view.getUint32(16), height: view.getUint32(20) }; // IHDR is always the first chunk
  if (/^GIF8[79]a$/.test(latin1(0, 6))) return gifSize(view);
  if (latin1(0, 4) === 'RIFF' && latin1(8, 12) === 'WEBP') return webpSize(view);
  if (latin1(4, 8) === 'ftyp') return avifSize(view);
  if (latin1(0, 2) === 'BM' && bytes.length >= 26) {
    // OS/2's header has 16 bits a side; Windows' height is negative where rows go down.
    return view.getUint32(14, true) === 12 ? { width: view.getUint16(18, true), height: view.getUint16(20, true) } : { width: Math.abs(view.getInt32(18, true)), height: Math.abs(view.getInt32(22, true)) };
  }
  return jpegSize(bytes);
}

const larger = (a: ImageSize, b: ImageSize): ImageSize => ({ width: Math.max(a.width, b.width), height: Math.max(a.height, b.height) });

/** Of the screen and of the first frame, which may stand out of it. */
function gifSize(view: DataView): ImageSize | undefined {
  if (view.byteLength < 13) return undefined;
  const screen = { width: view.getUint16(6, true), height: view.getUint16(8, true) };
  const table = (flags: number): number => (flags & 0x80 ? 3 * 2 ** ((flags & 7) + 1) : 0);
  for (let at = 13 + table(view.getUint8(10)); at + 10 <= view.byteLength; ) {
    const kind = view.getUint8(at);
    if (kind === 0x2c) return larger(screen, { width: view.getUint16(at + 1, true) + view.getUint16(at + 5, true), height: view.getUint16(at + 3, true) + view.getUint16(at + 7, true) });
    if (kind !== 0x21) return undefined;
    // An extension: blocks with their lengths before them, up to an empty one.
    for (at += 2; at < view.byteLength && view.getUint8(at) > 0; ) at += 1 + view.getUint8(at);
    at++;
  }
  return undefined;
}

/** Of the canvas, or of the one frame of a simple file. */
function webpSize(view: DataView): ImageSize | undefined {
  if (view.byteLength < 30) return undefined;
  const kind = view.getUint32(12);
  if (kind === 0x56503858) return { width: 1 + (view.getUint32(24, true) & 0xffffff), height: 1 + (view.getUint32(26, true) >>> 8) }; // VP8X
  if (kind === 0x5650384c && view.getUint8(20) === 0x2f) return { width: 1 + (view.getUint32(21, true) & 0x3fff), height: 1 + ((view.getUint32(21, true) >>> 14) & 0x3fff) }; // VP8L
  if (kind === 0x56503820) return { width: view.getUint16(26, true) & 0x3fff, height: view.getUint16(28, true) & 0x3fff }; // VP8
  return undefined;
}

/** Boxes of ISO/IEC 14496-12 that hold others, on the way to the sizes of an AVIF's images (`ispe`); `meta` has 4 bytes of version before them. */
const nests: Readonly<Record<string, number>> = { meta: 4, iprp: 0, ipco: 0 };

/** The largest of the images in the file, of which a grid is one and its tiles are others. */
function avifSize(view: DataView): ImageSize | undefined {
  let found: ImageSize | undefined;
  const walk = (from: number, to: number, depth: number): void => {
    for (let at = from; at + 8 <= to && depth <= 3; ) {
      const length = view.getUint32(at);
      const kind = String.fromCharCode(view.getUint8(at + 4), view.getUint8(at + 5), view.getUint8(at + 6), view.getUint8(at + 7));
      // 0 goes to the end; 1 has 64 bits, which a file's first megabyte needs for its pixels alone.
      const end = length < 8 ? to : Math.min(at + length, to);
      const inner = Object.hasOwn(nests, kind) ? nests[kind] : undefined;
      if (inner !== undefined) walk(at + 8 + inner, end, depth + 1);
      else if (kind === 'ispe' && at + 20 <= end) found = larger(found ?? { width: 0, height: 0 }, { width: view.getUint32(at + 12), height: view.getUint32(at + 16) });
      at = end;
    }
  };
  walk(0, view.byteLength, 0);
  return found;
}

/** Size and component count from a JPEG's frame header (SOF), read before any memory is taken for pixels. */
export function jpegSize(bytes: Uint8Array): (ImageSize & { readonly components: number }) | undefined {
  if (bytes[0] !== 0xff || bytes[1] !== 0xd8) return undefined;
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
