import { mkdir, readFile } from 'node:fs/promises';
import { homedir } from 'node:os';
import { dirname, join } from 'node:path';
import type { Engine } from '../engine/device';
import { exportTuning, importTuning } from '../engine/tune';
import { version } from '../../package.json';
import { writeFileAtomic } from './files';

/** Where an adapter's tuning is kept: in the user's cache directory, a file for each adapter. */
export function tuningFile(adapter: string): string {
  const name = adapter.toLowerCase().replace(/[^a-z0-9]+/g, '-').replace(/^-|-$/g, '');
  return join(process.env.XDG_CACHE_HOME || join(homedir(), '.cache'), 'bruit', 'tuning', `${name}.json`);
}

/** Takes over this adapter's stored tuning, if there is one of this version; tells whether. */
export async function loadTuning(engine: Engine, file = tuningFile(engine.profile.name)): Promise<boolean> {
  try {
    return importTuning(engine, JSON.parse(await readFile(file, 'utf8')), version);
  } catch {
    // Missing or broken: the ops choose by themselves, as on a new machine.
    return false;
  }
}

/** Stores the engine's tuning; returns the file. */
export async function saveTuning(engine: Engine, file = tuningFile(engine.profile.name)): Promise<string> {
  await mkdir(dirname(file), { recursive: true });
  await writeFileAtomic(file, `${JSON.stringify(exportTuning(engine, version), null, 1)}\n`);
  return file;
}
