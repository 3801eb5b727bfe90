/**
 * WebGPU in Node through Dawn (npm package `webgpu`). The adapter is chosen before the process starts: see adapter.ts.
 *
 * Dawn's objects follow garbage collection where a browser keeps them: a buffer that nothing refers to any more is
 * dropped, and its pending `mapAsync` rejects with AbortError. Keep a staging buffer reachable until its map settles.
 * A process exits by itself once nothing is pending, whether or not devices were destroyed, and `process.exit` is safe
 * with work in flight.
 */
import { create, globals } from 'webgpu';
import { BruitError } from '../engine/errors';

// Dawn's objects die with the instance ("external Instance reference no longer exists"), and only the object returned
// by create() keeps the instance alive. It lives as long as this module, so nobody has to hold it.
let instance: GPU | undefined;
let options: readonly string[] = [];

/** Dawn's toggles that a process is started with, separated by commas: `allow_unsafe_apis` offers features that are experiments. */
export const dawnVariable = 'BRUIT_DAWN_FEATURES';

/**
 * The process's `GPU` (the `navigator.gpu` of Node), with WebGPU's constants (`GPUBufferUsage`, …) put on `globalThis`.
 * `dawnOptions` as in the `webgpu` package, e.g. `['disable-dawn-features=timestamp_quantization']`; they count at the
 * first call, and a later call that asks for others is an error. Toggles of the variable {@link dawnVariable} are
 * switched on besides.
 */
export function createNodeGPU(dawnOptions: readonly string[] = []): GPU {
  if (instance) {
    if (dawnOptions.some((option) => !options.includes(option))) {
      throw new BruitError('device', `Dawn already runs with options [${options.join(' ')}], asked for [${dawnOptions.join(' ')}]`);
    }
    return instance;
  }
  Object.assign(globalThis, globals);
  pollGently();
  options = [...dawnOptions];
  instance = create(withToggles(dawnOptions, process.env[dawnVariable]));
  return instance;
}

/** Of options of one name Dawn's binding takes the last, so the toggles join those that the caller enables. */
function withToggles(dawnOptions: readonly string[], toggles: string | undefined): string[] {
  if (!toggles) return [...dawnOptions];
  const name = 'enable-dawn-features=';
  const enabled = dawnOptions.filter((option) => option.startsWith(name)).map((option) => option.slice(name.length));
  return [...dawnOptions.filter((option) => !option.startsWith(name)), name + [...enabled, toggles].join(',')];
}

/**
 * While anything is pending, Dawn's binding asks for finished work from `setImmediate` callbacks, one after the other without a pause:
 * that keeps a core busy which a software adapter needs for the GPU's work (training on two cores ran a third slower). Its callbacks
 * are native functions; after a burst of quick polls these are spaced out to a few milliseconds.
 */
function pollGently(): void {
  const immediate = globalThis.setImmediate;
  const quick = 200;
  const pause = 4; // ms
  let polls = 0;
  let last = 0;
  const patched = (callback: (...args: unknown[]) => void, ...args: unknown[]) => {
    if (!Function.prototype.toString.call(callback).includes('[native code]')) return immediate(callback, ...args);
    const now = performance.now();
    // Nothing was pending for a while: a new wait begins.
    if (now - last > 10 * pause) polls = 0;
    last = now;
    return ++polls < quick ? immediate(callback, ...args) : setTimeout(callback, pause, ...args);
  };
  globalThis.setImmediate = Object.assign(patched, { __promisify__: immediate.__promisify__ }) as unknown as typeof setImmediate;
}

/** An adapter of `gpu`, high performance first. Throws `BruitError('device')` that says what to do if there is none. */
export async function requestNodeAdapter(gpu: GPU = createNodeGPU()): Promise<GPUAdapter> {
  const adapter = await gpu.requestAdapter({ powerPreference: 'high-performance' }).catch((cause: unknown) => {
    throw new BruitError('device', `WebGPU failed to list adapters: ${String(cause)}`, { cause });
  });
  if (adapter) return adapter;
  throw new BruitError(
    'device',
    'no WebGPU adapter. Start through `bruit --adapter software` (or `node scripts/with_adapter.mjs swiftshader -- COMMAND`), which brings its own driver',
  );
}
