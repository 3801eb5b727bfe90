/** The sampling bundle: its weight, its own reader of shaders against wgsl_reflect, and its images against the library's, with every block and scheduler. */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { beforeAll, describe, expect, it } from 'vitest';
import { WgslReflect } from 'wgsl_reflect/wgsl_reflect.module.js';
import { build, gzippedSize, root, samplingLimit } from '../scripts/build.mjs';
import { Engine } from '../src/engine/device';
import { Graph } from '../src/engine/graph';
import { reflectable, specialise } from '../src/engine/shader';
import { WgslReflect as WgslLayout } from '../src/engine/wgsl_layout';
import type { ModelFolder } from '../src/io/folder';
import { writeSafetensors } from '../src/io/safetensors';
import { bytesSource } from '../src/io/source';
import { Parameters, WeightStore } from '../src/model/parameters';
import { parseUNet2DConfig, unet2d, unet2dInputs } from '../src/model/unet2d';
import { directory as modelFolder } from '../src/node/directory';
import { DDPMPipeline, schedulerNames, type GenerateOptions } from '../src/pipelines/ddpm';
import type * as sampling from '../src/sampling';
import { testDevice } from './helpers/device';

let path: string;
beforeAll(async () => {
  [path] = (await build(['sampling'])) as [string];
});

it('stays within its limit', () => {
  expect(gzippedSize(path)).toBeLessThanOrEqual(samplingLimit);
});

describe('wgsl_layout reads what wgsl_reflect reads', () => {
  const directory = join(root, 'shaders');
  for (const file of readdirSync(directory).filter((name) => name.endsWith('.wgsl'))) {
    it(file, () => {
      const source = { file, text: readFileSync(join(directory, file), 'utf8') };
      // With functions of lib/pointwise.wgsl in the epilogue, too, if there is one: what they name is no binding of the kernel's.
      const hooked = /^\/\/ epilogue$/m.test(specialise(source));
      const texts = [specialise(source), ...(hooked ? [specialise(source, { epilogue: 'fn epilogue(v: V, i: u32, column: u32) -> V { return gelu_tanh_grad(silu(v)); }' })] : [])];
      const plain = (reflected: WgslReflect | WgslLayout) =>
        reflected.entry.compute.map(({ name, resources }) => ({
          name,
          resources: resources
            .map((r) => {
              const type = r.type as unknown as { size: number; members: { name: string; offset: number; type: { name: string } }[] };
              const uniform = (r.resourceType as number) === 0;
              return {
                name: r.name, group: r.group, binding: r.binding, uniform,
                ...(uniform ? { size: Math.ceil(type.size / 16), members: type.members.map((m) => [m.name, m.offset, m.type.name]) } : { access: r.access }),
              };
            })
            .sort((a, b) => a.binding - b.binding),
        }));
      for (const text of texts) expect(plain(new WgslLayout(text))).toEqual(plain(new WgslReflect(reflectable(text))));
    });
  }
});

it("gives the library's images", async () => {
  const bundle = (await import(/* @vite-ignore */ pathToFileURL(path).href)) as typeof sampling;
  const device = await testDevice();
  const options = { labels: [3, 8], steps: 3, seed: 5, scheduler: 'dpmpp' } as const;
  const folder = modelFolder(join(root, 'models', 'digits'));
  const expected = await (await DDPMPipeline.fromFolder(await Engine.create({ device }), folder)).generate(options);
  const actual = await (await bundle.DDPMPipeline.fromFolder(await bundle.Engine.create({ device }), folder)).generate(options);
  expect(actual.shape).toEqual(expected.shape);
  expect(Math.max(...actual.images.map((v, i) => Math.abs(v - expected.images[i]!)))).toBeLessThan(1e-5);
  expect(Math.max(...expected.images)).toBeGreaterThan(0.5);
});

/** A pipeline folder in memory, with random weights. */
async function randomFolder(engine: Engine, unet: object, scheduler: object): Promise<ModelFolder> {
  const parameters = new Parameters(new Graph());
  const ctx = { graph: parameters.graph, parameters };
  const config = parseUNet2DConfig(unet);
  unet2d(ctx, config, unet2dInputs(ctx, config, [1, 16, 16]));
  const weights = new WeightStore(engine, parameters.specs.values());
  weights.initialise(3);
  const tensors = (await weights.readAll()).map(({ name, shape, data }) => ({ name, dtype: 'F32' as const, shape: [...shape], data }));
  weights.destroy();
  const files: Record<string, string> = { 'model_index.json': '{"_class_name":"DDPMPipeline"}', 'unet/config.json': JSON.stringify(unet), 'scheduler/scheduler_config.json': JSON.stringify(scheduler) };
  const weightsPath = 'unet/diffusion_pytorch_model.safetensors';
  return {
    name: 'random',
    has: (path) => Promise.resolve(path === weightsPath || Object.hasOwn(files, path)),
    text: (path) => Promise.resolve(files[path]!),
    source: () => Promise.resolve(bytesSource(writeSafetensors(tensors), weightsPath)),
  };
}

const skipBlocks = {
  down_block_types: ['SkipDownBlock2D', 'AttnSkipDownBlock2D'], up_block_types: ['AttnSkipUpBlock2D', 'SkipUpBlock2D'], block_out_channels: [32, 32],
  layers_per_block: 1, time_embedding_type: 'fourier', sample_size: 8, norm_num_groups: 8,
};
const models: Record<string, { unet: object; scheduler: object; options: GenerateOptions }> = {
  'skip blocks, Fourier time': { unet: skipBlocks, scheduler: { _class_name: 'HeunDiscreteScheduler', num_train_timesteps: 100, timestep_spacing: 'leading', steps_offset: 1 }, options: {} },
  'resampling residual blocks, labels, learned variance, thresholds': {
    unet: {
      down_block_types: ['ResnetDownsampleBlock2D', 'AttnDownBlock2D', 'DownBlock2D'], up_block_types: ['UpBlock2D', 'AttnUpBlock2D', 'ResnetUpsampleBlock2D'], block_out_channels: [20, 36, 40],
      layers_per_block: 1, downsample_type: 'resnet', upsample_type: 'resnet', resnet_time_scale_shift: 'scale_shift', act_fn: 'mish', num_class_embeds: 5, out_channels: 6, sample_size: [8, 12],
      norm_num_groups: 4, attention_head_dim: 6, center_input_sample: true,
    },
    scheduler: { _class_name: 'DDPMScheduler', num_train_timesteps: 100, variance_type: 'learned_range', thresholding: true, clip_sample: false, sample_max_value: 2 },
    options: { labels: [1, 4, 0] },
  },
  'heads of 16 and of over 256 channels': {
    unet: { down_block_types: ['AttnDownBlock2D', 'AttnDownBlock2D'], up_block_types: ['UpBlock2D', 'UpBlock2D'], block_out_channels: [16, 288], layers_per_block: 1, attention_head_dim: null, act_fn: 'gelu', norm_num_groups: 8, sample_size: 8 },
    scheduler: { _class_name: 'UniPCMultistepScheduler', num_train_timesteps: 100 },
    options: {},
  },
};

describe('models and adapters that the bundle is not tried with elsewhere', () => {
  async function compare(unet: object, scheduler: object, options: GenerateOptions, kind: 'gpu' | 'software'): Promise<void> {
    const bundle = (await import(/* @vite-ignore */ pathToFileURL(path).href)) as typeof sampling;
    const device = await testDevice();
    const [engine, bundled] = [await Engine.create({ device }), await bundle.Engine.create({ device })];
    for (const { profile } of [engine, bundled]) Object.assign(profile, { kind });
    const folder = await randomFolder(engine, unet, scheduler);
    const run = { steps: 3, seed: 7, ...options };
    const expected = await (await DDPMPipeline.fromFolder(engine, folder)).generate(run);
    const actual = await (await bundle.DDPMPipeline.fromFolder(bundled, folder)).generate(run);
    expect(actual.shape).toEqual(expected.shape);
    expect(Math.max(...actual.images.map((v, i) => Math.abs(v - expected.images[i]!)))).toBeLessThan(1e-4);
    expect(new Set(expected.images).size).toBeGreaterThan(20);
  }
  for (const [name, { unet, scheduler, options }] of Object.entries(models)) {
    it(name, () => compare(unet, scheduler, options, 'software'));
    // One for kernels that software adapters compile slowly.
    if (name.startsWith('heads')) it(`${name}, kernels for GPUs`, () => compare(unet, scheduler, options, 'gpu'));
  }
  const plain = { down_block_types: ['DownBlock2D'], up_block_types: ['UpBlock2D'], block_out_channels: [8], layers_per_block: 1, add_attention: false, norm_num_groups: 4, sample_size: 8 };
  for (const scheduler of Object.keys(schedulerNames) as (keyof typeof schedulerNames)[]) {
    it(scheduler, () => compare(plain, { _class_name: 'DDIMScheduler', num_train_timesteps: 100 }, { scheduler, steps: 5 }, 'software'));
  }
});

it('has weights as f32, and says so where another format is wanted', async () => {
  const bundle = (await import(/* @vite-ignore */ pathToFileURL(path).href)) as typeof sampling;
  const engine = await bundle.Engine.create({ device: await testDevice() });
  const folder = modelFolder(join(root, 'models', 'digits'));
  await expect(bundle.DDPMPipeline.fromFolder(engine, folder, { weights: 'int8' })).rejects.toThrow('weights as int8 take the whole of bruit: bruit/sampling has them as f32');
});

it('names the layer where sizes do not fit', async () => {
  const bundle = (await import(/* @vite-ignore */ pathToFileURL(path).href)) as typeof sampling;
  const engine = await bundle.Engine.create({ device: await testDevice() });
  const folder = await randomFolder(await Engine.create({ device: await testDevice() }), skipBlocks, { _class_name: 'DDIMScheduler' });
  const pipeline = await bundle.DDPMPipeline.fromFolder(engine, folder);
  await expect(pipeline.generate({ size: [15, 15] })).rejects.toThrow(/^up_blocks\.1: features of 14x14 meet a skip connection of 15x15/);
});
