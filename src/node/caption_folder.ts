import { readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import type { ImageDataset } from '../data/dataset';
import { BruitError, check } from '../engine/errors';
import { isJsonObject } from '../io/json';
import { fileError } from './files';
import { imageFiles, type ImageFolderOptions } from './image_folder';

const INDEX = 'metadata.jsonl';

/**
 * Images with captions: a folder with `metadata.jsonl`, one JSON object a line whose `file_name` is a PNG or JPEG under the folder and whose `text`
 * is its caption (the layout of Hugging Face's `datasets`). Other keys are left aside. Lines that are not of this form, and files that are not
 * there, are an error that names the line.
 */
export async function loadCaptionFolder(folder: string, options: ImageFolderOptions): Promise<ImageDataset> {
  const index = join(folder, INDEX);
  const text = await readFile(index, 'utf8').catch((error: unknown) => {
    throw fileError('read', index, error);
  });
  const items: { path: string; caption: string }[] = [];
  for (const [i, line] of text.split('\n').entries()) {
    if (!line.trim()) continue;
    const fail = (what: string): never => {
      throw new BruitError('input', `${index}, line ${i + 1}: ${what}`);
    };
    let record: unknown;
    try {
      record = JSON.parse(line);
    } catch (error) {
      fail(`is not JSON (${(error as Error).message})`);
    }
    if (!isJsonObject(record)) return fail('is not an object');
    const { file_name: name, text: caption } = record;
    if (typeof name !== 'string' || typeof caption !== 'string') return fail('must have "file_name" and "text", both strings');
    const path = join(folder, name);
    if (!(await stat(path).then((s) => s.isFile(), () => false))) fail(`there is no file ${path}`);
    items.push({ path, caption });
  }
  check(items.length > 0, 'input', () => `${index}: names no images`);
  return { ...imageFiles(folder, items.map(({ path }) => ({ path, label: 0 })), undefined, options), captions: items.map(({ caption }) => caption) };
}
