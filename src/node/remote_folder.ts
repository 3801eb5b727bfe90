/**
 * Model folders behind HTTP: the Hugging Face Hub and any other server that answers range requests. Files are fetched when they are asked for and kept in
 * a cache folder; a fetch that was cut off goes on where it stopped. (`@huggingface/hub` has no resuming.)
 */
import { createHash } from 'node:crypto';
import { mkdir, open, readFile, rename, rm, stat } from 'node:fs/promises';
import { homedir } from 'node:os';
import { dirname, join } from 'node:path';
import { BruitError } from '../engine/errors';
import { pathWithin, type ModelFolder } from '../io/folder';
import { fileError } from './files';
import { fileSource } from './file_source';

export interface RemoteFolderOptions {
  /** Where files are kept; {@link modelCache} by default. */
  readonly cache?: string;
  /** Told when a file is fetched: what of it is there, and its size. */
  readonly onFetch?: (file: string, done: number, bytes: number) => void;
  /** Sent with every request. */
  readonly headers?: Readonly<Record<string, string>>;
}

/** `BRUIT_CACHE`, or `bruit` in the user's cache folder. */
export const modelCache = (): string => process.env.BRUIT_CACHE ?? join(process.env.XDG_CACHE_HOME ?? join(homedir(), '.cache'), 'bruit');

/**
 * `hf:OWNER/NAME[@REVISION][/SUBFOLDER]` on the Hub. `HF_ENDPOINT` names another server with the Hub's addresses, `HF_TOKEN` opens gated models; both are what
 * the Hub's own tools read.
 */
export function hubFolder(name: string, options: RemoteFolderOptions = {}): ModelFolder {
  const match = /^hf:([\w.-]+)\/([\w.-]+?)(?:@([^/\s]+))?(?:\/(.+?))?\/?$/.exec(name);
  if (!match || name.includes('..')) throw new BruitError('input', `${name}: a model of the Hub is called hf:OWNER/NAME, hf:OWNER/NAME@REVISION or hf:OWNER/NAME/SUBFOLDER`);
  const [, owner, repository, revision = 'main', subfolder] = match;
  const endpoint = (process.env.HF_ENDPOINT ?? 'https://huggingface.co').replace(/\/+$/, '');
  const token = process.env.HF_TOKEN;
  return remoteFolder(`${endpoint}/${owner}/${repository}/resolve/${encodeURIComponent(decodeURIComponent(revision))}/${subfolder ? `${subfolder}/` : ''}`, { ...options, headers: { ...(token && { Authorization: `Bearer ${token}` }), ...options.headers } }, name);
}

/** A folder behind an address; files are fetched as `base/path`. */
export function remoteFolder(base: string, options: RemoteFolderOptions = {}, name = base): ModelFolder {
  const { cache = modelCache(), headers = {} } = options;
  const root = base.replace(/\/?$/, '/');
  const kept = join(cache, createHash('sha256').update(root).digest('hex').slice(0, 16));
  const url = (path: string): string => new URL(pathWithin(name, path).split('/').map(encodeURIComponent).join('/'), root).href;
  const request = async (path: string, init: RequestInit): Promise<Response> => {
    try {
      return await fetch(url(path), { ...init, headers: { ...headers, ...(init.headers as Record<string, string> | undefined) } });
    } catch (cause) {
      const reason = (cause as Error).cause instanceof Error ? ((cause as Error).cause as Error).message : (cause as Error).message;
      throw new BruitError('io', `${name}: cannot reach ${url(path)}: ${reason}`, { cause });
    }
  };
  const refused = (path: string, { status, statusText }: Response): BruitError =>
    new BruitError('io', `${name}: ${path}: the server answered ${status} ${statusText}${status === 401 || status === 403 ? '; if the model is gated or private, set HF_TOKEN' : ''}`);

  /** Size and version of a file, or undefined if it is not there. */
  const head = async (path: string): Promise<{ size: number; version: string } | undefined> => {
    const response = await request(path, { method: 'HEAD', headers: { 'Accept-Encoding': 'identity' } });
    if (response.status === 404) return undefined;
    if (!response.ok) throw refused(path, response);
    // The Hub describes files that lie elsewhere by headers of its own.
    const size = Number(response.headers.get('x-linked-size') ?? response.headers.get('content-length') ?? NaN);
    const version = response.headers.get('x-linked-etag') ?? response.headers.get('etag') ?? response.headers.get('last-modified') ?? '';
    return { size, version };
  };

  /** Path of a file in the cache, fetched if need be. */
  const local = async (path: string): Promise<string> => {
    const known = await head(path);
    if (!known) throw new BruitError('io', `${name}: there is no ${path}`);
    const tag = createHash('sha256').update(`${known.version}\n${known.size}`).digest('hex').slice(0, 12);
    const file = join(kept, tag, path);
    if (await stat(file).then((s) => s.isFile() && (Number.isNaN(known.size) || s.size === known.size), () => false)) return file;
    const partial = `${file}.part`;
    try {
      await mkdir(dirname(file), { recursive: true });
    } catch (error) {
      throw fileError('write', file, error);
    }
    let from = await stat(partial).then((s) => s.size, () => 0);
    if (from > known.size) from = 0;
    if (from < known.size || Number.isNaN(known.size)) {
      const response = await request(path, { headers: { 'Accept-Encoding': 'identity', ...(from > 0 && { Range: `bytes=${from}-` }) } });
      if (!response.ok || !response.body) throw refused(path, response);
      // A server without range requests sends all of it.
      if (response.status !== 206) from = 0;
      else if (!response.headers.get('content-range')?.startsWith(`bytes ${from}-`)) throw new BruitError('io', `${name}: ${path}: asked for bytes from ${from} on, got ${response.headers.get('content-range')}`);
      let done = from;
      options.onFetch?.(path, done, known.size);
      const handle = await open(partial, from > 0 ? 'a' : 'w').catch((error: unknown) => {
        throw fileError('write', partial, error);
      });
      try {
        // Chunk by chunk, so that what came before a broken connection is kept.
        for await (const chunk of response.body as unknown as AsyncIterable<Uint8Array>) {
          await handle.appendFile(chunk).catch((error: unknown) => {
            throw fileError('write', partial, error);
          });
          done += chunk.length;
          options.onFetch?.(path, done, known.size);
        }
      } catch (error) {
        if (error instanceof BruitError) throw error;
        throw new BruitError('io', `${name}: ${path}: the connection broke after ${done} bytes of ${known.size}; the same command goes on from there: ${(error as Error).message}`, { cause: error });
      } finally {
        await handle.close();
      }
      if (!Number.isNaN(known.size) && done !== known.size) {
        await rm(partial, { force: true });
        throw new BruitError('io', `${name}: ${path}: ${done} bytes came, but the server had announced ${known.size}`);
      }
    }
    await rename(partial, file).catch((error: unknown) => {
      throw fileError('write', file, error);
    });
    return file;
  };

  return {
    name,
    has: async (path) => (await head(path)) !== undefined,
    text: async (path) => readFile(await local(path), 'utf8'),
    source: async (path) => fileSource(await local(path)),
  };
}
