import { BruitError } from '../engine/errors';

/** A file of known size that can be read by byte range, wherever it lies. */
export interface ByteSource {
  /** Path, URL or label; error messages name the file by it. */
  readonly name: string;
  /** Length in bytes. */
  readonly size: number;
  /**
   * Reads `length` bytes from `offset`: never fewer, and in memory that the caller owns.
   * @throws BruitError `io` when the range lies outside the file or the medium fails.
   */
  read(offset: number, length: number): Promise<Uint8Array>;
  /** Releases what the source holds open, if anything. */
  close?(): Promise<void>;
}

/** @throws BruitError `io` unless [offset, offset + length) lies within `source`. */
export function checkRange(source: ByteSource, offset: number, length: number): void {
  if (Number.isSafeInteger(offset) && Number.isSafeInteger(length) && offset >= 0 && length >= 0 && offset + length <= source.size) return;
  throw new BruitError('io', `${source.name}: cannot read ${length} bytes at offset ${offset}; the file has ${source.size} bytes`);
}

/** Bytes in memory. They are not copied here; each `read` copies its range. */
export function bytesSource(bytes: ArrayBuffer | Uint8Array, name = 'bytes'): ByteSource {
  const view = bytes instanceof Uint8Array ? bytes : new Uint8Array(bytes);
  return {
    name,
    size: view.byteLength,
    async read(offset, length) {
      checkRange(this, offset, length);
      // Not .slice(): on a Node Buffer that is a view, not a copy.
      return new Uint8Array(view.subarray(offset, offset + length));
    },
  };
}

/** A `Blob` or `File` (from a file picker, a drop, the origin's private file system). */
export function blobSource(blob: Blob, name = 'name' in blob && typeof blob.name === 'string' ? blob.name : 'blob'): ByteSource {
  return {
    name,
    size: blob.size,
    async read(offset, length) {
      checkRange(this, offset, length);
      let bytes: ArrayBuffer;
      try {
        bytes = await blob.slice(offset, offset + length).arrayBuffer();
      } catch (cause) {
        throw new BruitError('io', `${name}: cannot read ${length} bytes at offset ${offset}: ${reason(cause)}. Was the file changed or moved?`, { cause });
      }
      return exactly(new Uint8Array(bytes), length, name, offset);
    },
  };
}

export interface UrlSourceOptions {
  /** Replaces the global `fetch` (for a cache, a proxy, a test). */
  fetch?: typeof fetch;
  /** Sent with every request, e.g. an `Authorization`. */
  headers?: Record<string, string>;
  /** Aborts the requests under way. */
  signal?: AbortSignal;
}

/** How much the first request asks for: it finds the size and usually brings the whole safetensors header along. */
const FIRST_CHUNK = 1 << 16;
/** The largest file that is downloaded whole from a server without range requests. */
const WHOLE_FILE_LIMIT = 64 * 2 ** 20;

/**
 * A file behind HTTP(S), read by range requests; the size comes from the first one's `Content-Range`.
 * A server that ignores `Range` (status 200) gives the whole file at once: that is accepted up to 64 MiB and refused above.
 * Every answer's status, range, total size and, where the server sends it, `ETag` are checked, so that a file replaced meanwhile is an error and not a mixture.
 * @throws BruitError `io`; an abort through `signal` rejects with the signal's reason.
 */
export async function urlSource(url: string | URL, options: UrlSourceOptions = {}): Promise<ByteSource> {
  const name = String(url);
  const request = async (offset: number, length: number): Promise<Response> => {
    try {
      return await (options.fetch ?? fetch)(url, {
        headers: { ...options.headers, Range: `bytes=${offset}-${offset + length - 1}` },
        ...(options.signal && { signal: options.signal }),
      });
    } catch (cause) {
      options.signal?.throwIfAborted();
      throw new BruitError('io', `${name}: the request failed: ${reason(cause)}. In a browser, the server must also allow this origin (CORS)`, { cause });
    }
  };
  const body = async (response: Response, offset: number, length: number): Promise<Uint8Array> => {
    let bytes: ArrayBuffer;
    try {
      bytes = await response.arrayBuffer();
    } catch (cause) {
      options.signal?.throwIfAborted();
      throw new BruitError('io', `${name}: the connection broke while reading ${length} bytes at offset ${offset}: ${reason(cause)}`, { cause });
    }
    return exactly(new Uint8Array(bytes), length, name, offset);
  };

  const first = await request(0, FIRST_CHUNK);
  if (first.status === 200) return bytesSource(await wholeFile(first, name, options.signal), name);
  if (first.status === 416) {
    // "Range not satisfiable" at offset 0 means an empty file.
    await first.body?.cancel();
    return bytesSource(new Uint8Array(0), name);
  }
  const { total: size, end } = contentRange(first, name, 0);
  const etag = first.headers.get('etag');
  const head = await body(first, 0, end + 1);

  const source: ByteSource = {
    name,
    size,
    async read(offset, length) {
      checkRange(source, offset, length);
      if (length === 0 || offset + length <= head.length) return head.slice(offset, offset + length);
      const response = await request(offset, length);
      const range = contentRange(response, name, offset);
      const now = response.headers.get('etag');
      if (range.total !== size || (etag && now && now !== etag)) {
        await response.body?.cancel();
        throw new BruitError('io', `${name}: the file changed on the server while it was being read (${size} bytes, ETag ${etag}; now ${range.total} bytes, ETag ${now}). Open it again`);
      }
      return body(response, offset, length);
    },
  };
  return source;
}

/** Checks a 206 answer and takes its `Content-Range` apart. */
function contentRange(response: Response, name: string, offset: number): { end: number; total: number } {
  const header = response.headers.get('content-range');
  const match = /^bytes (\d+)-(\d+)\/(\d+)$/.exec(header ?? '');
  if (response.status === 206 && match && Number(match[1]) === offset) return { end: Number(match[2]), total: Number(match[3]) };
  void response.body?.cancel();
  if (response.status !== 206) {
    const advice = response.status === 401 || response.status === 403 ? '. Does it need a token (options.headers)?' : '';
    throw new BruitError('io', `${name}: the server answered ${response.status} ${response.statusText} to a request for bytes from ${offset}; 206 was expected${advice}`);
  }
  throw new BruitError(
    'io',
    header === null
      ? `${name}: the answer to a range request shows no Content-Range. From another origin, the server must send Access-Control-Expose-Headers: Content-Range`
      : `${name}: asked for bytes from ${offset}, the server answered "Content-Range: ${header}"`,
  );
}

/** Reads a 200 answer whole, giving up as soon as it proves larger than the limit (its length may be missing or wrong). */
async function wholeFile(response: Response, name: string, signal: AbortSignal | undefined): Promise<Uint8Array> {
  const refuse = (size: string) =>
    new BruitError('io', `${name}: the server does not support range requests and the file (${size}) is over the ${WHOLE_FILE_LIMIT} bytes that are downloaded whole. Serve it from elsewhere, or download it and open the file`);
  const declared = Number(response.headers.get('content-length') ?? 0);
  if (declared > WHOLE_FILE_LIMIT) {
    await response.body?.cancel();
    throw refuse(`${declared} bytes`);
  }
  const chunks: Uint8Array[] = [];
  let size = 0;
  const reader = response.body?.getReader();
  try {
    for (let part = await reader?.read(); part && !part.done; part = await reader!.read()) {
      chunks.push(part.value);
      size += part.value.length;
      if (size > WHOLE_FILE_LIMIT) {
        await reader!.cancel();
        throw refuse('size not given');
      }
    }
  } catch (cause) {
    if (cause instanceof BruitError) throw cause;
    signal?.throwIfAborted();
    throw new BruitError('io', `${name}: the connection broke after ${size} bytes: ${reason(cause)}`, { cause });
  }
  const bytes = new Uint8Array(size);
  let at = 0;
  for (const chunk of chunks) {
    bytes.set(chunk, at);
    at += chunk.length;
  }
  return bytes;
}

function exactly(bytes: Uint8Array, length: number, name: string, offset: number): Uint8Array {
  if (bytes.length === length) return bytes;
  throw new BruitError('io', `${name}: asked for ${length} bytes at offset ${offset}, got ${bytes.length}`);
}

function reason(cause: unknown): string {
  if (!(cause instanceof Error)) return String(cause);
  // Node's fetch says only "fetch failed"; what happened is in its cause.
  return cause.cause instanceof Error ? `${cause.message} (${cause.cause.message})` : cause.message;
}
