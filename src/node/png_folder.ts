import { mkdir, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { BruitError } from '../engine/errors';
import { encodePng, imageRaster, type ImageBatch } from '../io/png';
import { fileError, writeFileAtomic } from './files';

/**
 * Writes each image of a batch as `00000.png`, `00001.png`, … into `folder` (made if missing) and returns the paths.
 * `text(i)` gives image i's tEXt metadata; `start` numbers a later batch on. Unless `overwrite`, a folder that holds
 * any of the names already is an error before anything is written.
 */
export async function writePngFolder(folder: string, images: ImageBatch, options: { start?: number; overwrite?: boolean; text?: (index: number) => Record<string, string> } = {}): Promise<string[]> {
  const { start = 0, overwrite = false, text } = options;
  const names = Array.from({ length: images.shape[0] }, (_, i) => `${String(start + i).padStart(5, '0')}.png`);
  let present: Set<string>;
  try {
    await mkdir(folder, { recursive: true });
    present = new Set(await readdir(folder));
  } catch (error) {
    throw fileError('write to', folder, error);
  }
  const taken = names.find((name) => present.has(name));
  if (taken && !overwrite) throw new BruitError('io', `${join(folder, taken)} exists already; nothing was written. Choose another folder, or remove it.`);
  const paths = names.map((name) => join(folder, name));
  for (const [i, path] of paths.entries()) await writeFileAtomic(path, encodePng(imageRaster(images, i), text?.(start + i)), { overwrite });
  return paths;
}
