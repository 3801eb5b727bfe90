import { describe, expect, it } from 'vitest';
import { adapterEnvironment, adapterVariable, parseAdapterKind } from '../src/node/adapter';
import { testDevice } from './helpers/device';

async function doubled(device: GPUDevice, values: Float32Array): Promise<Float32Array> {
  const module = device.createShaderModule({
    code: `@group(0) @binding(0) var<storage, read_write> x: array<f32>;
      @compute @workgroup_size(64) fn main(@builtin(global_invocation_id) id: vec3u) {
        if (id.x < arrayLength(&x)) { x[id.x] = 2 * x[id.x]; }
      }`,
  });
  const pipeline = device.createComputePipeline({ layout: 'auto', compute: { module } });
  const buffer = device.createBuffer({ size: values.byteLength, usage: GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_DST | GPUBufferUsage.COPY_SRC });
  const staging = device.createBuffer({ size: values.byteLength, usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST });
  device.queue.writeBuffer(buffer, 0, values.buffer as ArrayBuffer, values.byteOffset, values.byteLength);
  const encoder = device.createCommandEncoder();
  const pass = encoder.beginComputePass();
  pass.setPipeline(pipeline);
  pass.setBindGroup(0, device.createBindGroup({ layout: pipeline.getBindGroupLayout(0), entries: [{ binding: 0, resource: { buffer } }] }));
  pass.dispatchWorkgroups(Math.ceil(values.length / 64));
  pass.end();
  encoder.copyBufferToBuffer(buffer, 0, staging, 0, values.byteLength);
  device.queue.submit([encoder.finish()]);
  await staging.mapAsync(GPUMapMode.READ);
  const result = new Float32Array(staging.getMappedRange().slice(0));
  staging.destroy();
  buffer.destroy();
  return result;
}

describe('device', () => {
  for (const limits of ['adapter', 'default'] as const) {
    it(`computes with ${limits} limits`, async () => {
      const device = await testDevice({ limits });
      expect(await testDevice({ limits })).toBe(device);
      expect(Array.from(await doubled(device, Float32Array.from({ length: 131 }, (_, i) => i)))).toEqual(Array.from({ length: 131 }, (_, i) => 2 * i));
    });
  }

  it('has WebGPU’s default limits when asked for them', async () => {
    const device = await testDevice({ limits: 'default' });
    expect(device.limits.maxStorageBuffersPerShaderStage).toBe(8);
    expect(device.limits.maxComputeInvocationsPerWorkgroup).toBe(256);
    expect(device.limits.maxComputeWorkgroupStorageSize).toBe(16384);
    expect(device.limits.maxStorageBufferBindingSize).toBe(128 * 2 ** 20);
  });
});

describe('adapterEnvironment', () => {
  it('refuses unknown names with the list of known ones', () => {
    expect(() => parseAdapterKind('cuda')).toThrow(/unknown adapter "cuda".*swiftshader/);
  });

  it.runIf(process.platform === 'linux' && process.arch === 'x64')('offers the embedded software adapter', async () => {
    const environment = await adapterEnvironment('swiftshader');
    expect(environment['VK_ICD_FILENAMES']).toMatch(/vk_swiftshader_icd\.json$/);
    expect(environment[adapterVariable]).toBe('swiftshader');
  });
});
