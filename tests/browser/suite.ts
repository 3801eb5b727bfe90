/**
 * The suite for WebGPU implementations without vitest: Chrome (Tint) through run.mjs, deno (naga) through
 * scripts/deno.mjs. It must use nothing but `navigator.gpu`, `fetch`-like access given by the host, and the library.
 */
export interface BrowserTest {
  name: string;
  run: (context: BrowserTestContext) => Promise<void>;
}

export interface BrowserTestContext {
  /** Device with all features and limits of the adapter. */
  device: GPUDevice;
  /** Device within WebGPU's default limits, without features. */
  defaultDevice: GPUDevice;
  /** Bytes of a file under tests/goldens, e.g. `unet2d_class_cond/io.safetensors`. */
  golden: (path: string) => Promise<ArrayBuffer>;
}

export interface TestResult {
  name: string;
  ok: boolean;
  error?: string;
  milliseconds: number;
}

/** What the host page or runtime gives. */
export interface Host {
  report: (result: TestResult) => void | Promise<void>;
  golden: (path: string) => Promise<ArrayBuffer>;
}

const tests: BrowserTest[] = [];

/** Adds tests; names must be unique. */
export function registerBrowserTests(more: readonly BrowserTest[]): void {
  for (const test of more) {
    if (tests.some(({ name }) => name === test.name)) throw new Error(`two browser tests are named "${test.name}"`);
    tests.push(test);
  }
}

async function createDevice(adapter: GPUAdapter, everything: boolean): Promise<GPUDevice> {
  const requiredLimits: Record<string, number> = {};
  if (everything) {
    for (const name in adapter.limits) {
      const value = adapter.limits[name as keyof GPUSupportedLimits];
      if (typeof value === 'number') requiredLimits[name] = value;
    }
  }
  const requiredFeatures = (everything ? [...adapter.features] : []) as GPUFeatureName[];
  return adapter.requestDevice({ requiredFeatures, requiredLimits });
}

async function requestAdapter(): Promise<GPUAdapter> {
  const adapter = await navigator.gpu?.requestAdapter();
  if (!adapter) throw new Error('no WebGPU adapter');
  return adapter;
}

/** Runs every registered test whose name contains `filter`, in order, reporting each as it ends. */
export async function runBrowserTests(host: Host, filter = ''): Promise<void> {
  // One adapter makes one device.
  const device = await createDevice(await requestAdapter(), true);
  const defaultDevice = await createDevice(await requestAdapter(), false);
  const uncaptured: string[] = [];
  for (const each of [device, defaultDevice]) {
    each.addEventListener('uncapturederror', (event) => uncaptured.push(event.error.message));
  }
  for (const { name, run } of tests.filter((test) => test.name.includes(filter))) {
    const start = performance.now();
    let error: string | undefined;
    try {
      await run({ device, defaultDevice, golden: host.golden });
      // Errors outside any scope arrive after the work that caused them.
      await device.queue.onSubmittedWorkDone();
      if (uncaptured.length) error = `uncaptured WebGPU error: ${uncaptured.join('; ')}`;
    } catch (thrown) {
      error = thrown instanceof Error ? (thrown.stack ?? thrown.message) : String(thrown);
    }
    uncaptured.length = 0;
    await host.report({ name, ok: error === undefined, ...(error === undefined ? {} : { error }), milliseconds: performance.now() - start });
  }
}

async function doubles(device: GPUDevice): Promise<void> {
  const length = 131;
  const values = Float32Array.from({ length }, (_, i) => i - 7);
  const module = device.createShaderModule({
    code: `@group(0) @binding(0) var<storage, read_write> x: array<f32>;
      @compute @workgroup_size(64) fn main(@builtin(global_invocation_id) id: vec3u) {
        if (id.x < arrayLength(&x)) { x[id.x] = 2 * x[id.x]; }
      }`,
  });
  const pipeline = await device.createComputePipelineAsync({ layout: 'auto', compute: { module } });
  const buffer = device.createBuffer({ size: values.byteLength, usage: GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_DST | GPUBufferUsage.COPY_SRC });
  const staging = device.createBuffer({ size: values.byteLength, usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST });
  device.queue.writeBuffer(buffer, 0, values);
  const encoder = device.createCommandEncoder();
  const pass = encoder.beginComputePass();
  pass.setPipeline(pipeline);
  pass.setBindGroup(0, device.createBindGroup({ layout: pipeline.getBindGroupLayout(0), entries: [{ binding: 0, resource: { buffer } }] }));
  pass.dispatchWorkgroups(Math.ceil(length / 64));
  pass.end();
  encoder.copyBufferToBuffer(buffer, 0, staging, 0, values.byteLength);
  device.queue.submit([encoder.finish()]);
  await staging.mapAsync(GPUMapMode.READ);
  const result = new Float32Array(staging.getMappedRange().slice(0));
  staging.destroy();
  buffer.destroy();
  const wrong = values.findIndex((value, i) => result[i] !== 2 * value);
  if (wrong >= 0) throw new Error(`element ${wrong} is ${result[wrong]}, expected ${2 * values[wrong]!}`);
}

registerBrowserTests([
  { name: 'device: doubles an array', run: ({ device }) => doubles(device) },
  { name: 'device: doubles an array within the default limits', run: ({ defaultDevice }) => doubles(defaultDevice) },
]);
