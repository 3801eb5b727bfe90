/** Long runs hold no more at their end than at their beginning. `npm run test:long`: 10,000 sampling steps and 2,000 training steps. */
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { expect, test } from 'vitest';
import { BatchLoader, type ImageDataset } from '../../src/data/dataset';
import { Engine } from '../../src/engine/device';
import { createGpuSampler } from '../../src/sampler/sample';
import { createSampler } from '../../src/sampler/scheduler_config';
import { scale } from '../../src/engine/ops/pointwise';
import { parseTrainConfig } from '../../src/train/config';
import { Trainer } from '../../src/train/trainer';
import { countObjects } from '../helpers/counted_device';
import { freshDevice } from '../helpers/device';
import { long } from '../helpers/mode';

setFlagsFromString('--expose-gc');
const collect = runInNewContext('gc') as () => void;
const device = await freshDevice();
const live = countObjects(device);
const engine = await Engine.create({ device });

/** Bytes that JavaScript holds, after what nobody refers to has gone. */
async function heap(): Promise<number> {
  for (let i = 0; i < 4; i++) {
    collect();
    await new Promise((resolve) => setTimeout(resolve, 20)); // finalizers run between tasks
  }
  const { heapUsed, arrayBuffers } = process.memoryUsage();
  return heapUsed + arrayBuffers;
}

/** Runs `work` a few rounds for warmth, then `rounds`: no GPU object more, and less than a megabyte of heap. */
async function expectNoGrowth(rounds: number, work: () => Promise<void>): Promise<void> {
  for (let i = 0; i < Math.max(2, rounds / 10); i++) await work();
  const [objects, before] = [live(), await heap()];
  for (let i = 0; i < rounds; i++) await work();
  const growth = (await heap()) - before;
  if (long) console.log(`${rounds} rounds: ${growth} bytes of heap, ${JSON.stringify(live())}`);
  expect(live()).toEqual(objects);
  expect(growth).toBeLessThan(1e6);
}

test('sampling with previews and read-backs', async () => {
  const sampler = await createGpuSampler(engine, { program: createSampler({ _class_name: 'DDPMScheduler' }, { numInferenceSteps: 50 }), shape: [4, 1, 8, 8], seed: 1, preview: true, model: (_graph, x) => scale(x, 0.1) });
  let previews = 0;
  await expectNoGrowth((long ? 10_000 : 500) / 50, async () => {
    sampler.set({ seed: 3 });
    await sampler.run({ onPreview: () => void previews++, onProgress: () => undefined, previewEvery: 5 });
    await sampler.read();
  });
  expect(previews).toBeGreaterThan(100);
  sampler.destroy();
}, 3_600_000);

test('training with metrics and checkpoints', async () => {
  const model = { sample_size: 4, in_channels: 1, out_channels: 1, down_block_types: ['DownBlock2D'], up_block_types: ['UpBlock2D'], block_out_channels: [4], layers_per_block: 1, norm_num_groups: 2, add_attention: false, mid_block_type: null };
  const steps = long ? 2_000 : 60;
  const config = parseTrainConfig({ model, scheduler: { _class_name: 'DDPMScheduler', num_train_timesteps: 20 }, data: {}, train: { steps: steps * 2, batch_size: 2, log_every: 5, checkpoint_every: 10 } }, 'recipe');
  const images: ImageDataset = { name: 'ramps', length: 8, shape: [1, 4, 4], classes: undefined, get: async (i) => ({ image: new Float32Array(16).fill(i / 8), label: 0 }) };
  const trainer = await Trainer.create(engine, config, images, new BatchLoader(images, { batchSize: 2 }));
  let until = 0;
  await expectNoGrowth(steps / 20, async () => {
    until += 20;
    await trainer.train({ until, onMetrics: () => undefined, onCheckpoint: async (t) => void [await t.readState(), await t.readTensors()] });
  });
  expect(trainer.stepsDone).toBe(until);
  trainer.destroy();
  expect(live()).toEqual({ buffers: 0, bytes: 0, textures: 0, querySets: 0 });
  device.destroy();
}, 3_600_000);
