/** What every adapter of `npm run bench:adapters` draws: small images by the bundled model and by a latent text-to-image model, each twice. */
import { Engine } from '../../src/engine/device';
import type { ModelFolder } from '../../src/io/folder';
import { Parameters } from '../../src/model/parameters';
import { unet2d } from '../../src/model/unet2d';
import { DDPMPipeline } from '../../src/pipelines/ddpm';
import { StableDiffusionPipeline } from '../../src/pipelines/stable_diffusion';
import { createGpuSampler } from '../../src/sampler/sample';
import { createSampler } from '../../src/sampler/scheduler_config';

export interface AdapterImages {
  readonly model: string;
  /** Of activations; arithmetic is f32. */
  readonly precision: 'f32' | 'f16';
  /** Values in [0,1], base64 of f32. */
  readonly images: string;
  /** Whether the second time gave the same bits. */
  readonly repeats: boolean;
}

export interface AdapterReport {
  readonly adapter: string;
  readonly f16: boolean;
  readonly results: readonly AdapterImages[];
}

const seed = 7;
const labels = Int32Array.of(3, 8);
const steps = 5;

function base64(values: Float32Array): string {
  const bytes = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
  let text = '';
  for (let i = 0; i < bytes.length; i += 8192) text += String.fromCharCode(...bytes.subarray(i, i + 8192));
  return btoa(text);
}

/** The bundled model's sampler with activations of either type. */
async function digits(pipeline: DDPMPipeline, precision: 'f32' | 'f16'): Promise<Float32Array> {
  const { engine, weights, scheduler, unet } = pipeline;
  const built: Parameters[] = [];
  const sampler = await createGpuSampler(engine, {
    program: createSampler({ ...scheduler, _class_name: 'DDIMScheduler' }, { numInferenceSteps: steps }),
    shape: [labels.length, 1, 28, 28],
    labels,
    seed,
    model(graph, sample, timestep, classLabels) {
      const parameters = new Parameters(graph);
      built.push(parameters);
      return unet2d({ graph, parameters, computeType: precision }, unet, { sample, timestep, classLabels: classLabels! });
    },
    bindings: () => new Map(built.flatMap((parameters) => [...weights.bindings(parameters)])),
  });
  try {
    await sampler.run();
    return (await sampler.read()).map((v) => Math.min(Math.max(v / 2 + 0.5, 0), 1));
  } finally {
    sampler.destroy();
  }
}

async function latents(engine: Engine, folder: ModelFolder): Promise<Float32Array> {
  const pipeline = await StableDiffusionPipeline.fromFolder(engine, folder);
  try {
    return (await pipeline.generate({ prompt: 'a small red fox in the snow', height: 32, width: 32, num_inference_steps: 3, guidance_scale: 7.5, seed })).data;
  } finally {
    pipeline.destroy();
  }
}

/** `folder` opens a folder of the repository by its path. */
export async function adapterImages(gpu: GPU, folder: (path: string) => ModelFolder): Promise<AdapterReport> {
  const engine = await Engine.create({ gpu });
  const pipeline = await DDPMPipeline.fromFolder(engine, folder('models/digits'));
  const results: AdapterImages[] = [];
  const draw = async (model: string, precision: 'f32' | 'f16', compute: () => Promise<Float32Array>): Promise<void> => {
    const [first, second] = [await compute(), await compute()];
    results.push({ model, precision, images: base64(first), repeats: first.every((v, i) => Object.is(v, second[i])) });
  };
  await draw('digits', 'f32', () => digits(pipeline, 'f32'));
  await draw('latent text-to-image', 'f32', () => latents(engine, folder('tests/goldens/pipeline_sd_tiny')));
  if (engine.profile.f16) await draw('digits', 'f16', () => digits(pipeline, 'f16'));
  pipeline.destroy();
  const report = { adapter: engine.profile.name, f16: engine.profile.f16, results };
  engine.destroy();
  return report;
}
