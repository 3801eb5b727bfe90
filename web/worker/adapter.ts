/** The graphics card, or in plain words why there is none: what both workers ask first. */
import { BruitError } from '../../src/engine/errors';

/** WebGPU's own defaults of what kernels count on. Every adapter has them but those of old graphics interfaces (compatibility mode). */
const least = {
  maxStorageBuffersPerShaderStage: 8,
  maxStorageBufferBindingSize: 128 * 2 ** 20,
  maxBufferSize: 256 * 2 ** 20,
  maxComputeWorkgroupStorageSize: 16 * 2 ** 10,
  maxComputeInvocationsPerWorkgroup: 256,
  maxComputeWorkgroupSizeX: 256,
  maxComputeWorkgroupsPerDimension: 65535,
} as const;

/** @throws BruitError `device` where WebGPU is missing, there is no adapter, or it is smaller than WebGPU's default limits. */
export async function findAdapter(): Promise<GPUAdapter> {
  // Typed as always present, yet absent in older browsers and where a page came over plain http.
  const gpu = (navigator as { gpu?: GPU }).gpu;
  if (!gpu) throw new BruitError('device', self.isSecureContext ? 'This browser has no WebGPU, or it is turned off.' : 'Browsers give WebGPU to pages from https or from localhost only, and this one came over plain http.');
  const adapter = await gpu.requestAdapter({ powerPreference: 'high-performance' });
  if (!adapter) throw new BruitError('device', 'The browser has WebGPU but no graphics card to run it on: the driver is missing, blocked or too old.');
  const short = Object.entries(least).filter(([name, n]) => !(adapter.limits[name as keyof typeof least] >= n));
  if (short.length > 0) {
    throw new BruitError('device', `The graphics card is too small for this page: ${short.map(([name, n]) => `${name} is ${adapter.limits[name as keyof typeof least]} and must be ${n}`).join(', ')}.`);
  }
  return adapter;
}

/** What {@link findAdapter}'s adapter gives, in words where it gives nothing. */
export async function openDevice(request: Promise<GPUDevice>): Promise<GPUDevice> {
  try {
    return await request;
  } catch (cause) {
    throw new BruitError('device', `The graphics card was found but cannot be used: ${(cause as Error).message}`, { cause });
  }
}
