/**
 * The suite for WebGPU implementations without vitest: Chrome (Tint) through run.mjs, deno (naga) through
 * scripts/deno.mjs. It must use nothing but `navigator.gpu`, `fetch`-like access given by the host, and the library.
 */
import { Engine } from '../../src/engine/device';
import { allOps } from '../helpers/all_ops';
import { hostGoldens, modelGoldens, pipelineGoldens, schedulerGoldens, trainingGoldens, type ReadGolden } from '../helpers/golden_cases';
import { halfPrecisionChecks } from '../helpers/half_precision';
import { opChecks, packingChecks } from '../helpers/op_suite';

/**
 * vitest runs every case with every variant. Another implementation adds its own compiler to the same kernels, and compiling is nearly all
 * the time that the suite takes: so the cases are a sample, and cases of real layers' size or beyond a limit are vitest's alone.
 */
const SAMPLE = { cases: 6, inDepth: 2 };

interface BrowserTest {
  name: string;
  run: () => Promise<void>;
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
  golden: ReadGolden;
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

/** Everything, in order: the device, then op by op, then models, samplers and training. */
async function collectTests(host: Host, device: GPUDevice, defaultDevice: GPUDevice): Promise<BrowserTest[]> {
  const engine = await Engine.create({ device });
  const defaultEngine = await Engine.create({ device: defaultDevice });
  const on = (each: Engine, checks: readonly { name: string; run: (engine: Engine) => Promise<void> }[]) => checks.map(({ name, run }) => ({ name, run: () => run(each) }));
  return [
    { name: 'device · doubles an array', run: () => doubles(device) },
    { name: 'device · doubles an array within the default limits', run: () => doubles(defaultDevice) },
    ...on(engine, allOps.flatMap((suite) => opChecks(suite, { ...engine.profile, sample: SAMPLE }).filter(({ skip }) => !skip))),
    ...on(engine, packingChecks()),
    ...on(engine, engine.profile.f16 ? halfPrecisionChecks() : []),
    ...on(engine, hostGoldens(host.golden)),
    ...on(engine, modelGoldens(host.golden)),
    ...on(defaultEngine, await schedulerGoldens(host.golden)),
    ...on(defaultEngine, pipelineGoldens(host.golden)),
    ...on(engine, trainingGoldens(host.golden)),
  ];
}

/** Runs every test whose name contains `filter` but those named in `left`, in order, reporting each as it ends. */
export async function runBrowserTests(host: Host, filter = '', left: readonly string[] = []): Promise<void> {
  // One adapter makes one device.
  const device = await createDevice(await requestAdapter(), true);
  const defaultDevice = await createDevice(await requestAdapter(), false);
  const uncaptured: string[] = [];
  for (const each of [device, defaultDevice]) {
    each.addEventListener('uncapturederror', (event) => uncaptured.push(event.error.message));
  }
  const tests = await collectTests(host, device, defaultDevice);
  const twice = tests.find(({ name }, i) => tests.findIndex((other) => other.name === name) < i);
  if (twice) throw new Error(`two tests are named "${twice.name}"`);
  for (const { name, run } of tests.filter(({ name }) => name.includes(filter) && !left.includes(name))) {
    const start = performance.now();
    let error: string | undefined;
    try {
      await run();
      // Errors outside any scope arrive after the work that caused them.
      await Promise.all([device, defaultDevice].map((each) => each.queue.onSubmittedWorkDone()));
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
