/**
 * A device that goes away, and memory that runs out. `npm run test:long` injects 200 losses, others a few. A loss comes at the k-th call that the engine makes of
 * its device or queue, so that over all k it comes at every point of a run.
 */
import { describe, expect, test } from 'vitest';
import type { ImageDataset } from '../../src/data/dataset';
import { BatchLoader } from '../../src/data/dataset';
import { Engine } from '../../src/engine/device';
import { BruitError } from '../../src/engine/errors';
import { Graph, type Tensor } from '../../src/engine/graph';
import { matmul } from '../../src/engine/ops/matmul';
import { compile } from '../../src/engine/program';
import { withEngine } from '../../src/engine/recover';
import { Parameters, WeightStore } from '../../src/model/parameters';
import { parseUNet2DConfig, unet2d } from '../../src/model/unet2d';
import { createGpuSampler } from '../../src/sampler/sample';
import { createSampler } from '../../src/sampler/scheduler_config';
import { parseTrainConfig } from '../../src/train/config';
import { Trainer } from '../../src/train/trainer';
import { countObjects } from '../helpers/counted_device';
import { freshDevice } from '../helpers/device';
import { long } from '../helpers/mode';

const model = { sample_size: 4, in_channels: 1, out_channels: 1, down_block_types: ['DownBlock2D'], up_block_types: ['UpBlock2D'], block_out_channels: [4], layers_per_block: 1, norm_num_groups: 2, add_attention: false, mid_block_type: null };
const scheduler = { _class_name: 'DDPMScheduler', num_train_timesteps: 20 };

/** Three steps of a small sampler with previews; everything that it makes is destroyed. */
async function sample(engine: Engine): Promise<number[]> {
  const config = parseUNet2DConfig(model);
  const declared = new Parameters(new Graph());
  const build = (graph: Graph, parameters: Parameters, x: Tensor, t: Tensor) => unet2d({ graph, parameters }, config, { sample: x, timestep: t });
  build(declared.graph, declared, declared.graph.input('x', [1, 1, 4, 4]), declared.graph.input('t', [1]));
  const weights = new WeightStore(engine, declared.specs.values());
  try {
    weights.initialise(3);
    let parameters: Parameters | undefined;
    const sampler = await createGpuSampler(engine, {
      program: createSampler(scheduler, { numInferenceSteps: 3 }),
      shape: [2, 1, 4, 4],
      seed: 7,
      preview: true,
      model: (graph, x, t) => build(graph, (parameters = new Parameters(graph)), x, t),
      bindings: () => weights.bindings(parameters!),
    });
    try {
      const seen: number[] = [];
      await sampler.run({ onPreview: ({ x0 }) => seen.push(...x0) });
      return [...(await sampler.read()), ...seen];
    } finally {
      sampler.destroy();
    }
  } finally {
    weights.destroy();
  }
}

const images: ImageDataset = { name: 'ramps', length: 8, shape: [1, 4, 4], classes: undefined, get: async (i) => ({ image: Float32Array.from({ length: 16 }, (_, p) => Math.sin(i + p)), label: 0 }) };

/** Four training steps with accumulation, metrics and a checkpoint's read-backs. */
async function train(engine: Engine): Promise<number[]> {
  const config = parseTrainConfig({ model, scheduler, data: {}, train: { steps: 4, batch_size: 2, gradient_accumulation: 2, log_every: 2, checkpoint_every: 4, seed: 5 } }, 'recipe');
  const trainer = await Trainer.create(engine, config, images, new BatchLoader(images, { batchSize: 2, seed: 5 }));
  try {
    const losses: number[] = [];
    await trainer.train({ onMetrics: (metrics) => void losses.push(...metrics.map((m) => m.loss)) });
    const { weights, ema } = await trainer.readTensors();
    return [...losses, ...weights.flatMap((t) => [...t.data]), ...ema.flatMap((t) => [...t.data])];
  } finally {
    trainer.destroy();
  }
}

/** A device that is destroyed at call `at` (from 0) of its own and its queue's methods. `calls()` counts them. */
async function losingDevice(at: number) {
  const device = await freshDevice();
  let calls = 0;
  let done = false;
  const wrap = (object: object) => {
    for (let prototype: object | null = Object.getPrototypeOf(object) as object; prototype && prototype !== EventTarget.prototype && prototype !== Object.prototype; prototype = Object.getPrototypeOf(prototype) as object | null) {
      for (const name of Object.getOwnPropertyNames(prototype)) {
        const method = Object.getOwnPropertyDescriptor(prototype, name)?.value as unknown;
        if (typeof method !== 'function' || ['constructor', 'destroy'].includes(name)) continue;
        Object.defineProperty(object, name, {
          configurable: true,
          writable: true,
          value: (...args: unknown[]): unknown => {
            if (calls++ === at && !done) {
              done = true;
              device.destroy();
            }
            return Reflect.apply(method, object, args);
          },
        });
      }
    }
  };
  wrap(device.queue);
  wrap(device);
  return { device, calls: () => calls };
}

/** Engines over devices of the test's, which are destroyed with them. */
async function engineOver(device: GPUDevice): Promise<Engine> {
  const engine = await Engine.create({ device });
  const destroy = engine.destroy.bind(engine);
  engine.destroy = () => {
    destroy();
    device.destroy();
  };
  return engine;
}

describe.each([['sampling', sample, 2], ['training', train, 1]] as const)('%s', (_, work, few) => {
  test('a device lost at any point is a typed error, and with `recover` changes no bit', async () => {
    const whole = await losingDevice(Infinity);
    const expected = await withEngine({ create: () => engineOver(whole.device) }, work);
    expect(expected.length).toBeGreaterThan(50);
    expect(expected.every(Number.isFinite)).toBe(true);
    const total = whole.calls();
    const losses = long ? 100 : few;
    for (let k = 0; k < losses; k++) {
      const at = Math.floor(((k + 0.5) * total) / losses);
      const live: (() => object)[] = [];
      const create = async (): Promise<Engine> => {
        const { device } = await losingDevice(live.length === 0 ? at : Infinity);
        live.push(countObjects(device));
        return engineOver(device);
      };
      const errors: unknown[] = [];
      const recovered = await withEngine({ recover: true, onLost: (error) => void errors.push(error), create }, work);
      expect(errors, `call ${at} of ${total}`).toMatchObject([{ name: 'BruitError', code: 'device', message: expect.stringContaining('The GPU device was lost (destroyed') }]);
      expect(recovered).toEqual(expected);
      for (const count of live) expect(count(), `call ${at} of ${total}`).toMatchObject({ buffers: 0, textures: 0 });
    }
    const { device } = await losingDevice(Math.floor(total / 3));
    await expect(withEngine({ create: () => engineOver(device) }, work)).rejects.toThrow('The GPU device was lost');
  }, 3_600_000);
});

test('a device that keeps going away is given up', async () => {
  let made = 0;
  const create = async () => {
    made++;
    return engineOver((await losingDevice(3)).device);
  };
  await expect(withEngine({ recover: true, attempts: 2, create }, sample)).rejects.toThrow('The GPU device was lost');
  expect(made).toBe(2);
  // Other errors are not the device's.
  await expect(withEngine({ recover: true, create: async () => engineOver(await freshDevice()) }, () => Promise.reject(new BruitError('input', 'mine')))).rejects.toThrow('mine');
});

/** A device with so much memory. Beyond it, as the specification has it, a buffer is made that is not valid, and the scope hears of it. */
function limitMemory(device: GPUDevice, bytes: number): void {
  const create = device.createBuffer.bind(device);
  const push = device.pushErrorScope.bind(device);
  const pop = device.popErrorScope.bind(device);
  const scopes: { filter: string; error: GPUError | null }[] = [];
  let used = 0;
  device.createBuffer = (descriptor) => {
    const buffer = create(descriptor);
    used += descriptor.size;
    const destroy = buffer.destroy.bind(buffer);
    let alive = true;
    buffer.destroy = () => {
      if (alive) used -= descriptor.size;
      alive = false;
      return destroy();
    };
    if (used > bytes) {
      const scope = scopes.findLast((s) => s.filter === 'out-of-memory');
      if (!scope) throw new Error(`nobody listens for the ${used} bytes`);
      scope.error ??= { message: `no room for ${descriptor.size} bytes` } as GPUError;
    }
    return buffer;
  };
  device.pushErrorScope = (filter) => {
    scopes.push({ filter, error: null });
    return push(filter);
  };
  device.popErrorScope = async () => {
    const { error } = scopes.pop()!;
    return (await pop()) ?? error;
  };
}

test('out of memory: the numbers, everything freed, and the engine goes on', async () => {
  const device = await freshDevice();
  const live = countObjects(device);
  limitMemory(device, 300_000);
  const engine = await Engine.create({ device });
  const none = live();
  const big = new Graph();
  const a = big.input('a', [256, 256]);
  const square = matmul(matmul(a, a), a);
  const error: unknown = await compile(engine, big, { outputs: [square], label: 'big' }).catch((e: unknown) => e);
  expect(error).toMatchObject({ code: 'limit', message: expect.stringMatching(/^big: 524288 bytes of activations: out of GPU memory \(no room for 262144 bytes\)/) });
  expect(live()).toEqual(none);

  const alignment = device.limits.minStorageBufferOffsetAlignment;
  const slab = Math.ceil(360_000 / alignment) * alignment;
  const store = new Parameters(new Graph());
  store.get('w', [300, 300], 'plain', { kind: 'constant', value: 0 });
  const file = { name: 'w.safetensors', metadata: {}, tensors: new Map([['w', { name: 'w', dtype: 'F32', shape: [300, 300], file: '', byteOffset: 0, byteLength: 360_000 }]]), readF32: async () => new Float32Array(90_000) } as never;
  await expect(WeightStore.fromCheckpoint(engine, store.specs.values(), file, { label: 'unet' })).rejects.toThrow(`unet: ${slab} bytes of weights: out of GPU memory (no room for ${slab} bytes)`);
  expect(live()).toEqual(none);
  const wide = { ...model, block_out_channels: [48], norm_num_groups: 4 };
  const config = parseTrainConfig({ model: wide, scheduler, data: {}, train: { steps: 1, batch_size: 2 } }, 'recipe');
  await expect(Trainer.create(engine, config, images, new BatchLoader(images, { batchSize: 2, seed: 5 }))).rejects.toThrow(/^training: \d+ bytes of weights, gradients, moments and EMA: out of GPU memory/);
  expect(live()).toEqual(none);
  expect(engine.liveBytes).toBe(0);

  expect((await sample(engine)).every(Number.isFinite)).toBe(true);
  expect(live()).toEqual(none);
  device.destroy();
});
