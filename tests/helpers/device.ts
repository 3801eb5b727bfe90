import { createNodeGPU, requestNodeAdapter } from '../../src/node/gpu';

export interface TestDeviceOptions {
  /** `adapter` (all that it offers) or `default` (WebGPU's guaranteed limits and no features). */
  limits?: 'adapter' | 'default';
  /** Exactly these features instead of all. */
  features?: GPUFeatureName[];
}

const devices = new Map<string, Promise<GPUDevice>>();

async function requestDevice(options: TestDeviceOptions): Promise<GPUDevice> {
  const adapter = await requestNodeAdapter(createNodeGPU());
  const restricted = options.limits === 'default';
  const features = options.features ?? (restricted ? [] : [...adapter.features]);
  const requiredLimits: Record<string, number> = {};
  if (!restricted) {
    // Limits are getters on the prototype, so they do not show in Object.keys.
    for (const name in adapter.limits) {
      const value = adapter.limits[name as keyof GPUSupportedLimits];
      if (typeof value === 'number') requiredLimits[name] = value;
    }
  }
  const device = await adapter.requestDevice({ requiredFeatures: features as GPUFeatureName[], requiredLimits });
  // The device's own leaves out subgroup matrices here.
  Object.defineProperty(device, 'adapterInfo', { value: adapter.info });
  return device;
}

async function requestSharedDevice(options: TestDeviceOptions): Promise<GPUDevice> {
  const device = await requestDevice(options);
  // An error that no scope catches would otherwise only be a line on stderr; vitest fails the run on this one.
  device.addEventListener('uncapturederror', (event) => {
    throw new Error(`uncaptured WebGPU error: ${event.error.message}`);
  });
  return device;
}

/**
 * The test file's device, shared by all calls with the same options: do not destroy it (ask with {@link freshDevice} for
 * one to destroy). Needs an adapter's environment: run vitest through `npm run vitest`.
 */
export function testDevice(options: TestDeviceOptions = {}): Promise<GPUDevice> {
  const key = JSON.stringify([options.limits ?? 'adapter', options.features ?? null]);
  let device = devices.get(key);
  if (!device) devices.set(key, (device = requestSharedDevice(options)));
  return device;
}

/** A device of the caller's own, to lose, destroy or provoke. */
export function freshDevice(options: TestDeviceOptions = {}): Promise<GPUDevice> {
  return requestDevice(options);
}
