import { Engine } from '../src/engine/device';
import { createNodeGPU } from '../src/node/gpu';

/** The engine of this process's adapter. Timestamps come unrounded: no web page is watching. */
export async function openEngine(): Promise<Engine> {
  return Engine.create({ gpu: createNodeGPU(['disable-dawn-features=timestamp_quantization']), powerPreference: 'high-performance' });
}

/** Prints a result to stdout: the object as JSON, or the text. */
export function print(json: boolean | undefined, object: () => unknown, text: () => string): void {
  process.stdout.write(json ? `${JSON.stringify(object(), null, 2)}\n` : `${text()}\n`);
}
