import { Engine } from '../src/engine/device';
import { createNodeGPU } from '../src/node/gpu';
import { loadTuning } from '../src/node/tuning_store';

/**
 * The engine of this process's adapter; `tuned`: with the kernels that `bruit tune` found fastest (others than `verify` and `bench` should see).
 * Timestamps come unrounded: no web page is watching.
 */
export async function openEngine({ tuned = false } = {}): Promise<Engine> {
  const engine = await Engine.create({ gpu: createNodeGPU(['disable-dawn-features=timestamp_quantization']), powerPreference: 'high-performance' });
  if (tuned) await loadTuning(engine);
  return engine;
}

/** Prints a result to stdout: the object as JSON, or the text. */
export function print(json: boolean | undefined, object: () => unknown, text: () => string): void {
  process.stdout.write(json ? `${JSON.stringify(object(), null, 2)}\n` : `${text()}\n`);
}
