/** A model folder in diffusers' layout (model_index.json and one sub-folder per component), wherever it lies. */
import { BruitError } from '../engine/errors';
import { isJsonObject, parseJson } from './json';
import { openSafetensors, openSharded, type TensorStore } from './safetensors';
import { urlSource, type ByteSource } from './source';

export interface ModelFolder {
  readonly name: string;
  /** Whether a file is there. */
  has(path: string): Promise<boolean>;
  /** A whole text file. */
  text(path: string): Promise<string>;
  /** A file read by byte range. */
  source(path: string): Promise<ByteSource>;
}

/**
 * A file's path below a remote folder. Parts of paths come from the model's own files: what would lead to another folder or server, or out of a cache, is refused.
 * @throws BruitError `io` that names the folder.
 */
export function pathWithin(folder: string, path: string): string {
  if (/^\/|\\|^[^/]*:|(^|\/)\.\.(\/|$)/.test(path)) throw new BruitError('io', `${folder}: ${JSON.stringify(path)} is no path within the folder`);
  return path;
}

/** A folder behind a URL; files are fetched as `base/path`. */
export function urlFolder(base: string, options: { fetch?: typeof fetch } = {}): ModelFolder {
  const fetcher = options.fetch ?? fetch;
  const root = base.replace(/\/?$/, '/');
  const url = (path: string) => new URL(path, root).href;
  return {
    name: base,
    async has(path) {
      return (await fetcher(url(path), { method: 'HEAD' })).ok;
    },
    async text(path) {
      const response = await fetcher(url(path));
      if (!response.ok) throw new BruitError('io', `${url(path)}: the server answered ${response.status} ${response.statusText}`);
      return response.text();
    },
    source: (path) => urlSource(url(path), { fetch: fetcher }),
  };
}

/** `top`, and where it lacks a file `base`. */
export function overlayFolder(top: ModelFolder, base: ModelFolder): ModelFolder {
  const holder = async (path: string): Promise<ModelFolder> => ((await top.has(path)) ? top : base);
  return {
    name: top.name,
    has: async (path) => (await top.has(path)) || base.has(path),
    text: async (path) => (await holder(path)).text(path),
    source: async (path) => (await holder(path)).source(path),
  };
}

/** The folder at `path` from `folder`: `unet`, or `../other`. */
export const siblingFolder = (folder: ModelFolder, path: string): ModelFolder => ({
  name: `${folder.name}/${path}`,
  has: (file) => folder.has(`${path}/${file}`),
  text: (file) => folder.text(`${path}/${file}`),
  source: (file) => folder.source(`${path}/${file}`),
});

/** A folder that has `folder` as its sub-folder `name`: a component by itself, where a pipeline's folder is wanted. */
export function asSubfolder(folder: ModelFolder, name: string): ModelFolder {
  const inside = (path: string): string | undefined => (path.startsWith(`${name}/`) ? path.slice(name.length + 1) : undefined);
  const file = (path: string): string => {
    const own = inside(path);
    if (own === undefined) throw new BruitError('io', `${folder.name}: ${path} is outside of this ${name}`);
    return own;
  };
  return {
    name: folder.name,
    has: async (path) => inside(path) !== undefined && folder.has(file(path)),
    text: async (path) => folder.text(file(path)),
    source: async (path) => folder.source(file(path)),
  };
}

export async function readJson(folder: ModelFolder, path: string): Promise<Record<string, unknown>> {
  const text = await folder.text(path);
  try {
    const json = parseJson(text);
    if (isJsonObject(json)) return json;
    throw new Error('it is no object');
  } catch (e) {
    throw new BruitError('config', `${folder.name}: ${path} is not JSON: ${(e as Error).message}`, { cause: e });
  }
}

/** Opens the weights of a component, whole, half-precision (`.fp16.`) or sharded, whichever the folder has. */
export async function openWeights(folder: ModelFolder, component: string, base = 'diffusion_pytorch_model'): Promise<TensorStore> {
  const names = [`${base}.safetensors`, `${base}.fp16.safetensors`];
  for (const name of names) if (await folder.has(`${component}/${name}`)) return openSafetensors(await folder.source(`${component}/${name}`));
  const index = `${component}/${base}.safetensors.index.json`;
  if (await folder.has(index)) return openSharded(await folder.source(index), (file) => folder.source(`${component}/${file}`));
  throw new BruitError('checkpoint', `${folder.name}: ${component}/ has no weights (looked for ${[...names, `${base}.safetensors.index.json`].join(', ')})`);
}
