import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import path from 'node:path';
import type { ModelFolder } from '../io/folder';
import { fileError } from './files';
import { fileSource } from './file_source';

/** A model folder on disk. */
export function directory(root: string): ModelFolder {
  const at = (file: string) => path.join(root, file);
  return {
    name: root,
    has: async (file) => existsSync(at(file)),
    async text(file) {
      try {
        return await readFile(at(file), 'utf8');
      } catch (e) {
        throw fileError('read', at(file), e);
      }
    },
    source: (file) => fileSource(at(file)),
  };
}
