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

/**
 * Files of a zip by path; folders are left out. What comes out of every entry is counted as it comes and must be what the zip's directory says, whatever headers
 * say besides, so that neither memory nor time goes beyond `bytes`.
 * @throws BruitError `checkpoint` that begins with `name`, for a zip that is damaged, too large, or lies; its paths must be distinct and lead nowhere else.
 */
export function readZip(zip: Uint8Array, name: string, { bytes, entries = 64 }: ZipBounds): Map<string, Uint8Array> {
  const refuse = (what: string): never => {
    throw new BruitError('checkpoint', `${name}: ${what}`);
  };
  check(zip.length <= bytes, 'checkpoint', () => `${name}: its ${zip.length} bytes are more than the ${bytes} that are read`);
  const open = new Map<string, { readonly data: Uint8Array; at: number; begun: boolean; ended: boolean }>();
  try {
    let total = 0;
    const declared: (readonly [path: string, size: number])[] = [];
    unzipSync(zip, {
      // Only the directory is read: nothing is unpacked.
      filter({ name: path, size, originalSize }) {
        if (declared.length === entries) refuse(`more than ${entries} files`);
        pathWithin(name, path);
        if (declared.some(([other]) => other === path)) refuse(`two files called ${JSON.stringify(path)}`);
        if (originalSize > best * (size + 1)) refuse(`${JSON.stringify(path)} cannot unpack to ${originalSize} bytes from ${size}`);
        if ((total += originalSize) > bytes) refuse(`it unpacks to more than the ${bytes} bytes that are read`);
        declared.push([path, originalSize]);
        return false;
      },
    });
    for (const [path, size] of declared) open.set(path, { data: new Uint8Array(size), at: 0, begun: false, ended: false });
    const stream = new Unzip((file) => {
      const entry = open.get(file.name);
      if (!entry || entry.begun) return refuse(`${JSON.stringify(file.name)} is not in its directory`);
      entry.begun = true;
      file.ondata = (error, chunk, final) => {
        if (error) throw error;
        if (entry.at + chunk.length > entry.data.length) refuse(`${JSON.stringify(file.name)} unpacks to more than the ${entry.data.length} bytes that it declares`);
        entry.data.set(chunk, entry.at);
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
  for (const [path, { data, at, ended }] of open) if (!ended || at !== data.length) refuse(`${JSON.stringify(path)} ends after ${at} of ${data.length} bytes`);
  return new Map([...open].filter(([path]) => !path.endsWith('/')).map(([path, { data }]) => [path, data]));
}
