/** Zips that somebody gives the page, unpacked within bounds. */
import { Unzip, UnzipInflate, unzipSync } from 'fflate';
import { BruitError, check } from '../../src/engine/errors';
import { pathWithin } from '../../src/io/folder';

export interface ZipBounds {
  /** Bytes of the zip, and of all that is in it. */
  readonly bytes: number;
  /** Files in it; 64 by default. */
  readonly entries?: number;
}

/** Deflate packs no more than so many bytes into one, but for its first few. */
const best = 1032;
const piece = 2 ** 14;

/** Unpacks in pieces, so that what one of them unpacks to is bounded, too. */
class InflateByPieces extends UnzipInflate {
  override push(chunk: Uint8Array, final: boolean): void {
    let at = 0;
    for (; at + piece < chunk.length; at += piece) super.push(chunk.subarray(at, at + piece), false);
    super.push(chunk.subarray(at), final);
  }
}

/** CRC-32 of each byte by itself, of the polynomial that zip and PNG share (ISO 3309). */
const crcTable = Int32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte;
  for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0xedb88320 : crc >>> 1;
  return crc;
});

/** The complement of the CRC-32 of what gave `crc` (-1 at the beginning) and `data` behind it. */
function crcWith(crc: number, data: Uint8Array): number {
  for (let i = 0; i < data.length; i++) crc = crcTable[(crc ^ data[i]!) & 255]! ^ (crc >>> 8);
  return crc;
}

/** CRC-32 of each file as the directory has it, in its order: what fflate reads of the directory leaves them out, and looks at none. */
function* checksums(zip: Uint8Array): Generator<number, undefined> {
  const view = new DataView(zip.buffer, zip.byteOffset, zip.byteLength);
  let end = zip.length - 22;
  while (view.getUint32(end, true) !== 0x06054b50) end--;
  const zip64 = end >= 20 && view.getUint32(end - 20, true) === 0x07064b50 ? view.getUint32(end - 12, true) : undefined;
  let at = zip64 !== undefined && view.getUint32(zip64, true) === 0x06064b50 ? view.getUint32(zip64 + 48, true) : view.getUint32(end + 16, true);
  for (;;) {
    yield view.getInt32(at + 16, true);
    at += 46 + view.getUint16(at + 28, true) + view.getUint16(at + 30, true) + view.getUint16(at + 32, true);
  }
}

/**
 * Files of a zip by path; folders are left out. What comes out of every entry is counted as it comes and must be what the zip's directory says in number and checksum
 * (CRC-32), whatever headers say besides, so that neither memory nor time goes beyond `bytes` and no changed byte goes unseen.
 * @throws BruitError `checkpoint` that begins with `name`, for a zip that is damaged, too large, or lies; its paths must be distinct and lead nowhere else.
 */
export function readZip(zip: Uint8Array, name: string, { bytes, entries = 64 }: ZipBounds): Map<string, Uint8Array> {
  const refuse = (what: string): never => {
    throw new BruitError('checkpoint', `${name}: ${what}`);
  };
  check(zip.length <= bytes, 'checkpoint', () => `${name}: its ${zip.length} bytes are more than the ${bytes} that are read`);
  const open = new Map<string, { readonly data: Uint8Array; readonly crc: number; seen: number; at: number; begun: boolean; ended: boolean }>();
  try {
    let total = 0;
    const declared: (readonly [path: string, size: number, crc: number])[] = [];
    const crcs = checksums(zip);
    unzipSync(zip, {
      // Only the directory is read: nothing is unpacked.
      filter({ name: path, size, originalSize }) {
        if (declared.length === entries) refuse(`more than ${entries} files`);
        pathWithin(name, path);
        if (declared.some(([other]) => other === path)) refuse(`two files called ${JSON.stringify(path)}`);
        if (originalSize > best * (size + 1)) refuse(`${JSON.stringify(path)} cannot unpack to ${originalSize} bytes from ${size}`);
        if ((total += originalSize) > bytes) refuse(`it unpacks to more than the ${bytes} bytes that are read`);
        declared.push([path, originalSize, crcs.next().value!]);
        return false;
      },
    });
    for (const [path, size, crc] of declared) open.set(path, { data: new Uint8Array(size), crc, seen: -1, at: 0, begun: false, ended: false });
    const stream = new Unzip((file) => {
      const entry = open.get(file.name);
      if (!entry || entry.begun) return refuse(`${JSON.stringify(file.name)} is not in its directory`);
      entry.begun = true;
      file.ondata = (error, chunk, final) => {
        if (error) throw error;
        if (entry.at + chunk.length > entry.data.length) refuse(`${JSON.stringify(file.name)} unpacks to more than the ${entry.data.length} bytes that it declares`);
        entry.data.set(chunk, entry.at);
        entry.seen = crcWith(entry.seen, chunk);
        entry.at += chunk.length;
        entry.ended = final;
      };
      file.start();
    });
    stream.register(InflateByPieces);
    stream.push(zip, true);
  } catch (cause) {
    if (cause instanceof BruitError) throw cause;
    throw new BruitError('checkpoint', `${name}: a damaged zip: ${(cause as Error).message}`, { cause });
  }
  for (const [path, { data, at, ended, crc, seen }] of open) {
    if (!ended || at !== data.length) refuse(`${JSON.stringify(path)} ends after ${at} of ${data.length} bytes`);
    if (~seen !== crc) refuse(`${JSON.stringify(path)} is not what it was when the zip was made: its checksum (CRC-32) is another`);
  }
  return new Map([...open].filter(([path]) => !path.endsWith('/')).map(([path, { data }]) => [path, data]));
}
