/** An adapter's tuning in the browser's IndexedDB. */
import { get, set } from 'idb-keyval';
import { version } from '../../package.json';
import type { Engine } from '../engine/device';
import { exportTuning, importTuning } from '../engine/tune';

const key = (engine: Engine): string => `bruit tuning ${engine.profile.name}`;

/** Takes over this adapter's stored tuning, if there is one of this version; tells whether. */
export async function loadTuning(engine: Engine): Promise<boolean> {
  // Private windows and opaque origins have no storage: the ops choose by themselves, as on a first visit.
  return importTuning(engine, await get(key(engine)).catch(() => undefined), version);
}

/** Stores the engine's tuning. */
export async function saveTuning(engine: Engine): Promise<void> {
  await set(key(engine), exportTuning(engine, version));
}
