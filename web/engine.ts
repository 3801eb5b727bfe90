/** The page's end of the workers. One that has lost its device, or that hangs, is replaced, and the page goes on. */
import { batch, signal } from '@preact/signals';
import { proxy, transfer, wrap } from 'comlink';
import type { AdapterInfo, EngineWorker } from './worker/main';

/** What the page knows of WebGPU here: still asking, an adapter, or why there is none. */
export const adapter = signal<AdapterInfo | { readonly error: string } | undefined>(undefined);
/** Workers that were replaced so far: canvases and what the worker held belong to one of them. */
export const generation = signal(0);
/** Why the worker was replaced, in words, until the visitor has read it. */
export const replaced = signal('');

/** A worker's object as the page calls it: every method answers later. */
export type Remote<T> = { readonly [K in keyof T]: T[K] extends (...args: infer A) => infer R ? (...args: A) => Promise<Awaited<R>> : Remote<T[K]> };

export interface Thread<T> {
  readonly remote: Remote<T>;
  /** Rejects where the script does not load or run: it then answers no call. */
  readonly failed: Promise<never>;
  /** Ends the worker; whatever it was asked and has not answered rejects with `reason`. */
  readonly end: (reason: Error) => void;
}

export function startThread<T>(script: string, name: string): Thread<T> {
  const worker = new Worker(script, { type: 'module', name });
  const waiting = new Set<(reason: Error) => void>();
  let ended: Error | undefined;
  const answered = (answer: Promise<unknown>): Promise<unknown> =>
    new Promise((resolve, reject) => {
      if (ended) return reject(ended);
      waiting.add(reject);
      void answer.then(resolve, reject).finally(() => waiting.delete(reject));
    });
  const guarded = (object: object): object =>
    new Proxy(object, {
      get: (target, key) => (key === 'then' ? undefined : guarded(Reflect.get(target, key) as object)),
      apply: (target, _, args) => answered(Reflect.apply(target as (...args: unknown[]) => Promise<unknown>, undefined, args)),
    });
  const failed = new Promise<never>((_, reject) => worker.addEventListener('error', (e) => reject(new Error(`The page’s worker did not start${e.message ? `: ${e.message}` : ''}.`)), { once: true }));
  failed.catch(() => undefined);
  return {
    remote: guarded(wrap<T>(worker) as unknown as object) as Remote<T>,
    failed,
    end(reason) {
      ended = reason;
      worker.terminate();
      for (const reject of waiting) reject(reason);
    },
  };
}

/** Seconds in which a worker answers whatever it is doing, unless it hangs. */
const patience = 5;

/** Calls a worker that may hang: where it does not even answer that it is there, `replace` is given words for that. */
export async function answering(thread: Thread<{ ping: () => void }>, what: () => Promise<void>, replace: (why: string) => void): Promise<void> {
  const timer = setTimeout(() => replace(`What computes did not answer for ${patience} seconds: it hung and was ended.`), 1000 * patience);
  await Promise.all([what(), thread.remote.ping().finally(() => clearTimeout(timer))]);
}

let current: { readonly thread: Thread<EngineWorker>; readonly ready: Promise<Remote<EngineWorker>> } | undefined;

/** The worker, once it has an adapter; rejects where there is none. */
export const engine = (): Promise<Remote<EngineWorker>> => (current ??= begin()).ready;

function begin(): NonNullable<typeof current> {
  const thread = startThread<EngineWorker>('worker.js', 'engine');
  const lost = callback((reason: string) => replace(thread, `The graphics card was lost (${reason}): its driver was reset or updated, or its memory ran out.`));
  const start = async (attempts: number): Promise<AdapterInfo> => {
    try {
      return await Promise.race([thread.remote.start(lost), thread.failed]);
    } catch (e) {
      if (attempts <= 1) throw e;
      await new Promise((resolve) => setTimeout(resolve, 1000));
      return start(attempts - 1);
    }
  };
  const ready = (async () => {
    try {
      // A driver that was reset may take a moment to come back.
      adapter.value = await start(generation.value > 0 ? 4 : 1);
    } catch (e) {
      if (current?.thread === thread) adapter.value = { error: (e as Error).message };
      throw e;
    }
    return thread.remote;
  })();
  return { thread, ready };
}

function replace(thread: Thread<EngineWorker>, why: string): void {
  if (current?.thread !== thread) return;
  current = undefined;
  thread.end(new Error(why));
  batch(() => {
    adapter.value = undefined;
    replaced.value = why;
    generation.value += 1;
  });
}

/** Asks the worker for what it does between two steps, such as to stop. One that hangs is replaced. */
export async function interrupt(what: (worker: Remote<EngineWorker>) => Promise<void>): Promise<void> {
  const { thread, ready } = (current ??= begin());
  try {
    const worker = await ready;
    await answering(thread, () => what(worker), (why) => replace(thread, why));
  } catch (e) {
    if (current?.thread === thread) throw e;
  }
}

export const attach = async (name: string, canvas: OffscreenCanvas): Promise<void> => (await engine()).attach(name, transfer(canvas, [canvas]));
export const detach = async (name: string): Promise<void> => (await engine()).detach(name);

/** Marks a function as one that the worker may call. */
export const callback = <T extends (...args: never[]) => void>(f: T): T => proxy(f) as unknown as T;
