/** What the adapter can do at most, measured: the yardstick of profiles and benchmarks. */
import peakWgsl from '../../shaders/peak.wgsl';
import type { Engine } from './device';
import { packParams, reflect, specialise, type EntryInfo } from './shader';

export interface Peak {
  /** Multiply-add throughput in f32, flop/s (a fused multiply-add is two). */
  readonly f32: number;
  /** The same in f16, where the adapter computes in it. */
  readonly f16: number | undefined;
  /** Bytes read plus bytes written per second by a copy larger than the usual caches. */
  readonly bandwidth: number;
}

const source = { file: 'peak.wgsl', text: peakWgsl };
const measured = new WeakMap<Engine, Promise<Peak>>();

/** Peak of an engine's adapter; measured at the first call (about a second), then remembered. */
export function measurePeak(engine: Engine): Promise<Peak> {
  let peak = measured.get(engine);
  if (!peak) {
    peak = measure(engine);
    measured.set(engine, peak);
    peak.catch(() => measured.delete(engine));
  }
  return peak;
}

async function measure(engine: Engine): Promise<Peak> {
  const f32 = await fmaRate(engine, 'f32');
  const f16 = engine.profile.f16 ? await fmaRate(engine, 'f16') : undefined;
  return { f32, f16, bandwidth: await copyRate(engine) };
}

/** Enough invocations to fill the largest GPUs; few on a CPU, whose threads each take whole workgroups. */
const fmaWorkgroups = { gpu: 16384, software: 256 } as const;

async function fmaRate(engine: Engine, scalar: 'f32' | 'f16'): Promise<number> {
  const groups = fmaWorkgroups[engine.profile.kind];
  const invocations = groups * 64;
  return rate(engine, 'fma_chains', { S: scalar }, { sourceBytes: 16, resultBytes: invocations * 16 }, groups, (count) => invocations * count * 256);
}

async function copyRate(engine: Engine): Promise<number> {
  const { maxBufferSize, maxStorageBufferBindingSize } = engine.profile.limits;
  const bytes = Math.min(engine.profile.kind === 'gpu' ? 2 ** 28 : 2 ** 26, maxBufferSize, maxStorageBufferBindingSize);
  const groups = engine.profile.kind === 'gpu' ? 8192 : 256;
  return rate(engine, 'copy', {}, { sourceBytes: bytes, resultBytes: bytes }, groups, () => 2 * bytes, bytes / 16);
}

/** Seconds of one timed submission: so long that the queue's latency does not matter. */
const enough = 0.03;

/**
 * Best rate of `work(count)` per second over a few timed submissions. Without `fixed`, `count` is raised until one submission takes
 * {@link enough}; with it, the dispatch is repeated instead.
 */
async function rate(
  engine: Engine,
  entry: string,
  prologue: Record<string, string>,
  { sourceBytes, resultBytes }: { sourceBytes: number; resultBytes: number },
  workgroups: number,
  work: (count: number) => number,
  fixed?: number,
): Promise<number> {
  const { device } = engine;
  const info = reflect(source.file, specialise(source, { prologue }), entry);
  const pipeline = await engine.pipelines.get(info);
  const buffers = {
    params: engine.createBuffer('peak.params', info.params!.size, 64 | 8), // UNIFORM | COPY_DST
    source: engine.createBuffer('peak.source', sourceBytes, 128), // STORAGE
    result: engine.createBuffer('peak.result', resultBytes, 128),
  };
  try {
    const entries = [...info.bindings].map(([name, { binding }]) => ({ binding, resource: { buffer: buffers[name as keyof typeof buffers] } }));
    const bindGroup = device.createBindGroup({ label: 'peak', layout: pipeline.getBindGroupLayout(0), entries });
    const seconds = async (count: number, repeats: number): Promise<number> => {
      writeParams(engine, buffers.params, info, count);
      const encoder = device.createCommandEncoder();
      const pass = encoder.beginComputePass();
      pass.setPipeline(pipeline);
      pass.setBindGroup(0, bindGroup);
      for (let i = 0; i < repeats; i++) pass.dispatchWorkgroups(workgroups);
      pass.end();
      await device.queue.onSubmittedWorkDone();
      const start = performance.now();
      device.queue.submit([encoder.finish()]);
      await device.queue.onSubmittedWorkDone();
      return (performance.now() - start) / 1000;
    };
    let [count, repeats] = [fixed ?? 16, 1];
    for (let time = await seconds(count, repeats); time < enough && count * repeats < 2 ** 40; time = await seconds(count, repeats)) {
      const factor = Math.min(16, Math.ceil((1.2 * enough) / Math.max(time, 1e-6)));
      if (fixed === undefined) count *= factor;
      else repeats *= factor;
    }
    let best = Infinity;
    for (let i = 0; i < 3; i++) best = Math.min(best, await seconds(count, repeats));
    engine.assertAlive();
    return (work(count) * repeats) / best;
  } finally {
    for (const buffer of Object.values(buffers)) engine.destroyBuffer(buffer);
  }
}

function writeParams(engine: Engine, buffer: GPUBuffer, info: EntryInfo, count: number): void {
  const bytes = new ArrayBuffer(info.params!.size);
  packParams(info, { count, a: 0.5, b: 0.25 }, new DataView(bytes), 0);
  engine.device.queue.writeBuffer(buffer, 0, bytes);
}
