/** Where models come from: beside the page, behind a URL, from the Hub, from a folder on the disk. Files are fetched once and kept in the Cache API. */
import { BruitError } from '../../src/engine/errors';
import { pathWithin, type ModelFolder } from '../../src/io/folder';
import { blobSource, bytesSource } from '../../src/io/source';

export type ModelSource =
  | { readonly kind: 'bundled'; readonly model: 'digits' | 'scenes' }
  | { readonly kind: 'url'; readonly url: string }
  /** `owner/name` of huggingface.co, `owner/name@revision`. */
  | { readonly kind: 'hub'; readonly id: string }
  | { readonly kind: 'files'; readonly files: readonly File[] }
  /** Paths and contents, as a training run leaves them. */
  | { readonly kind: 'memory'; readonly name: string; readonly files: Readonly<Record<string, Uint8Array>> };

/** Bytes fetched and in all; `cached` ones came from an earlier visit. */
export interface Download {
  readonly file: string;
  readonly done: number;
  readonly total: number;
}

export const modelCache = 'bruit-models';
/** Files of a model that nobody may make us fetch: far above any component that a browser can hold, and any config or vocabulary. */
const largest = { weights: 16 * 2 ** 30, text: 256 * 2 ** 20 } as const;

export function openSource(source: ModelSource, onDownload: (d: Download) => void): ModelFolder & { sizes?: (paths: readonly string[]) => Promise<number> } {
  switch (source.kind) {
    case 'bundled':
      return remoteFolder(new URL(`models/${source.model}/`, self.location.href).href, `bundled ${source.model}`, onDownload, { keep: false }); // the service worker keeps them, by the page's version
    case 'url':
      return remoteFolder(httpUrl(source.url), source.url, onDownload);
    case 'hub': {
      const match = /^([\w.-]+\/[\w.-]+?)(?:@([\w./-]+))?$/.exec(source.id.trim());
      if (!match || /(^|\/)\.+(\/|$)/.test(`${match[1]}/${match[2] ?? ''}`)) throw new BruitError('input', `"${source.id}" is not the id of a model on the Hub: it looks like owner/name`);
      return remoteFolder(`https://huggingface.co/${match[1]}/resolve/${match[2] ?? 'main'}/`, match[1]!, onDownload);
    }
    case 'files':
      return filesFolder(source.files);
    case 'memory':
      return {
        name: source.name,
        has: async (path) => Object.hasOwn(source.files, path),
        text: async (path) => new TextDecoder().decode(known(source.files[path], source.name, path)),
        source: async (path) => bytesSource(known(source.files[path], source.name, path), path),
      };
  }
}

function known<T>(value: T | undefined, folder: string, path: string): T {
  if (value === undefined) throw new BruitError('io', `${folder}: there is no ${path}`);
  return value;
}

function httpUrl(text: string): string {
  let url: URL;
  try {
    url = new URL(text, self.location.href);
  } catch {
    throw new BruitError('input', `"${text}" is not a URL`);
  }
  if (!/^https?:$/.test(url.protocol)) throw new BruitError('input', `${text}: only http and https URLs can be fetched`);
  return url.href.replace(/\/?$/, '/');
}

/** A folder chosen on the disk; paths are taken from the folder that holds model_index.json. */
function filesFolder(files: readonly File[]): ModelFolder {
  const index = files.map((f) => f.webkitRelativePath || f.name).filter((path) => /(^|\/)model_index\.json$/.test(path)).sort((a, b) => a.length - b.length)[0];
  if (!index) throw new BruitError('checkpoint', 'the chosen folder has no model_index.json: choose a folder in diffusers’ layout');
  const root = index.slice(0, -'model_index.json'.length);
  const byPath = new Map(files.map((f) => [(f.webkitRelativePath || f.name).slice(root.length), f]));
  const name = root.replace(/\/$/, '') || 'folder';
  return {
    name,
    has: async (path) => byPath.has(path),
    text: (path) => known(byPath.get(path), name, path).text(),
    source: async (path) => blobSource(known(byPath.get(path), name, path), path),
  };
}

function remoteFolder(base: string, name: string, onDownload: (d: Download) => void, { keep = true } = {}): ModelFolder & { sizes: (paths: readonly string[]) => Promise<number> } {
  const url = (path: string) => new URL(pathWithin(name, path).split('/').map(encodeURIComponent).join('/'), base).href;
  // Private windows may have no cache: then everything is fetched again on the next visit.
  const cache = keep ? self.caches.open(modelCache).catch(() => undefined) : Promise.resolve(undefined);
  const stored = async (path: string): Promise<Response | undefined> => (await cache)?.match(url(path));
  const heads = new Map<string, Promise<Response>>();
  const head = (path: string): Promise<Response> => {
    const asked = heads.get(path) ?? request(url(path), { method: 'HEAD' });
    heads.set(path, asked);
    return asked;
  };
  const whole = async (path: string, most: number): Promise<Response> => {
    const found = await stored(path);
    if (found) return found;
    const response = await request(url(path));
    if (!response.ok) throw new BruitError('io', `${url(path)}: the server answered ${response.status} ${response.statusText}`);
    const total = Number(response.headers.get('content-length') ?? 0);
    if (total > most) throw new BruitError('io', `${url(path)}: its ${total} bytes are more than the ${most} that are fetched of such a file`);
    let done = 0;
    const counted = response.body!.pipeThrough(
      new TransformStream<Uint8Array, Uint8Array>({
        transform(chunk, controller) {
          done += chunk.length;
          if (done > most) throw new BruitError('io', `${url(path)}: more than the ${most} bytes came that are fetched of such a file`);
          onDownload({ file: path, done, total: Math.max(total, done) });
          controller.enqueue(chunk);
        },
      }),
    );
    const blob = await new Response(counted).blob();
    await (await cache)?.put(url(path), new Response(blob)).catch(() => undefined); // full storage: go on without
    return new Response(blob);
  };
  return {
    name,
    has: async (path) => (await stored(path)) !== undefined || (await head(path)).ok,
    text: async (path) => (await whole(path, largest.text)).text(),
    source: async (path) => blobSource(await (await whole(path, largest.weights)).blob(), path),
    /** Bytes that are still to be fetched of these files; those that are not there count nothing. */
    async sizes(paths) {
      const each = await Promise.all(
        paths.map(async (path) => {
          if (await stored(path)) return 0;
          const response = await head(path);
          return response.ok ? Number(response.headers.get('content-length') ?? 0) : 0;
        }),
      );
      return each.reduce((a, b) => a + b, 0);
    },
  };
}

async function request(url: string, init?: RequestInit): Promise<Response> {
  try {
    return await fetch(url, { ...init, credentials: 'omit' });
  } catch (cause) {
    throw new BruitError('io', `${url}: the request failed. The server must be reachable and allow this page (CORS)`, { cause });
  }
}
