import { readdir, readFile } from 'node:fs/promises';
import { join, sep } from 'node:path';
import { BruitError } from '../engine/errors';
import type { ModelFolder } from '../io/folder';
import { parsePythonJson } from '../io/json';
import type { TensorStore } from '../io/safetensors';
import { directory } from './directory';
import { openTensorFile } from './file_source';
import { fileError } from './files';

/** A folder of JSON and safetensors files, read when asked for; `close()` closes the tensor files. */
export interface DataFolder {
  readonly name: string;
  readonly files: readonly string[];
  json(path: string): Promise<unknown>;
  tensors(path: string): Promise<TensorStore>;
  readonly model: ModelFolder;
  close(): Promise<void>;
}

/** @throws BruitError `io` if `path` is not a folder that can be read. */
export async function openFolder(path: string): Promise<DataFolder> {
  const entries = await readdir(path, { withFileTypes: true, recursive: true }).catch((cause: unknown) => {
    throw fileError('open', path, cause);
  });
  const files = entries.filter((e) => !e.isDirectory()).map((e) => join(e.parentPath ?? e.path, e.name).slice(join(path).replace(/[\\/]$/, '').length + 1).split(sep).join('/'));
  const open = new Map<string, Promise<TensorStore>>();
  return {
    name: path,
    files,
    model: directory(path),
    async json(file) {
      const full = join(path, file);
      const text = await readFile(full, 'utf8').catch((cause: unknown) => {
        throw fileError('read', full, cause);
      });
      try {
        // Dumps of scheduler configurations hold -Infinity.
        return parsePythonJson(text);
      } catch (cause) {
        throw new BruitError('input', `${full}: not valid JSON: ${(cause as Error).message}`, { cause });
      }
    },
    tensors(file) {
      let store = open.get(file);
      if (!store) open.set(file, (store = openTensorFile(join(path, file))));
      return store;
    },
    async close() {
      for (const store of open.values()) await store.then((s) => s.close(), () => {});
    },
  };
}
