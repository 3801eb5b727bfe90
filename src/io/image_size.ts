/** What a picture says of its size, before any memory is taken for its pixels. */
import { BruitError } from '../engine/errors';

/** Larger pictures are refused before they are unpacked: 100 million pixels. */
export const MAX_PIXELS = 100_000_000;

/**
 * Looks at the size that the first bytes of a PNG or JPEG declare; other formats pass.
 * @throws BruitError `input` naming the file, where that is none or more than {@link MAX_PIXELS}.
 */
export function checkImageSize(bytes: Uint8Array, name: string): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const png = bytes.length >= 24 && view.getUint32(0) === 0x89504e47;
  const size = png ? { width: view.getUint32(16), height: view.getUint32(20) } : jpegSize(bytes); // IHDR is always the first chunk
  if (!size) return;
  const { width, height } = size;
  if (width * height > MAX_PIXELS) throw new BruitError('input', `${name}: ${width}x${height} pixels are more than the ${MAX_PIXELS / 1e6} megapixels allowed; make it smaller first.`);
  if (width * height === 0) throw new BruitError('input', `${name}: has no pixels (${width}x${height}).`);
}

/** Size and component count from a JPEG's frame header (SOF), read before any memory is taken for pixels. */
export function jpegSize(bytes: Uint8Array): { width: number; height: number; components: number } | undefined {
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
