/** The page's end of the worker. */
import { signal } from '@preact/signals';
import { proxy, transfer, wrap } from 'comlink';
import type { AdapterInfo, EngineWorker } from './worker/main';

/** What the page knows of WebGPU here: still asking, an adapter, or why there is none. */
export const adapter = signal<AdapterInfo | { readonly error: string } | undefined>(undefined);

/** The worker's object as the page calls it: every method answers later. */
export type Remote<T> = { readonly [K in keyof T]: T[K] extends (...args: infer A) => infer R ? (...args: A) => Promise<Awaited<R>> : Remote<T[K]> };

let started: Promise<Remote<EngineWorker>> | undefined;

/** The worker, once it has an adapter; rejects where there is none. */
export function engine(): Promise<Remote<EngineWorker>> {
  started ??= (async () => {
    const thread = new Worker('worker.js', { type: 'module', name: 'engine' });
    // A script that does not load or run answers no call.
    const failed = new Promise<never>((_, reject) => thread.addEventListener('error', (e) => reject(new Error(`The page’s worker did not start${e.message ? `: ${e.message}` : ''}.`)), { once: true }));
    const worker = wrap<EngineWorker>(thread) as unknown as Remote<EngineWorker>;
    try {
      adapter.value = await Promise.race([worker.start(), failed]);
    } catch (e) {
      adapter.value = { error: (e as Error).message };
      throw e;
    }
    return worker;
  })();
  return started;
}

export const attach = async (name: string, canvas: OffscreenCanvas): Promise<void> => (await engine()).attach(name, transfer(canvas, [canvas]));
export const detach = async (name: string): Promise<void> => (await engine()).detach(name);

/** Marks a function as one that the worker may call. */
export const callback = <T extends (...args: never[]) => void>(f: T): T => proxy(f) as unknown as T;
