/** What can be trained beside a pixel-space U-Net: each kind learns, its gradients are the loss's, and it stops and goes on with the same bytes. */
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, expect, test, vi } from 'vitest';
import { BatchLoader, subset } from '../../src/data/dataset';
import { digitScenes, isHeldBack, planScene } from '../../src/data/scenes';
import { Engine } from '../../src/engine/device';
import { uniforms } from '../../src/engine/rng';
import { encodePng } from '../../src/io/png';
import { readLora } from '../../src/model/lora';
import { loadCaptionFolder } from '../../src/node/caption_folder';
import { directory } from '../../src/node/directory';
import { openTensorFile } from '../../src/node/file_source';
import { loadMnist } from '../../src/node/mnist';
import { loadRecipe } from '../../src/node/recipe';
import { exportCheckpoint, listCheckpoints } from '../../src/node/run_directory';
import { loadRecipeData, runTraining, type TrainRunOptions } from '../../src/node/train_run';
import { DiTPipeline } from '../../src/pipelines/dit';
import { StableDiffusionPipeline } from '../../src/pipelines/stable_diffusion';
import { loadTokenizer } from '../../src/text/tokenizer';
import { encodeDataset } from '../../src/train/autoencoder';
import { Trainer } from '../../src/train/trainer';
import { openWeights } from '../../src/io/folder';
import { parseUNet2DConditionConfig, unet2dCondition } from '../../src/model/unet2d_condition';
import { DiffusionProcess } from '../../src/sampler/diffusion_process';
import { noiseTables, parseSchedulerConfig } from '../../src/sampler/scheduler_config';
import { TrainingStep } from '../../src/train/step';
import { testDevice } from '../helpers/device';
import { goldenJson, goldenPath } from '../helpers/golden';
import { assertClose } from '../helpers/op_suite';

// Each kind compiles programs of its own, and later tests begin where earlier ones ended: a slow machine must not break the chain.
vi.setConfig({ testTimeout: 400_000 });
const engine = await Engine.create({ device: await testDevice() });
let dir: string;
const at = (...parts: string[]): string => path.join(dir, ...parts);

const vae = { _class_name: 'AutoencoderKL', in_channels: 1, out_channels: 1, down_block_types: ['DownEncoderBlock2D', 'DownEncoderBlock2D'], up_block_types: ['UpDecoderBlock2D', 'UpDecoderBlock2D'], block_out_channels: [4, 8], layers_per_block: 1, latent_channels: 2, norm_num_groups: 2, mid_block_add_attention: false };
const unet = { _class_name: 'UNet2DConditionModel', sample_size: 4, in_channels: 2, out_channels: 2, down_block_types: ['DownBlock2D', 'CrossAttnDownBlock2D'], up_block_types: ['UpBlock2D', 'UpBlock2D'], block_out_channels: [4, 8], layers_per_block: 1, attention_head_dim: 2, cross_attention_dim: 8, norm_num_groups: 2, addition_embed_type: 'text', addition_embed_type_num_heads: 2 };
const textEncoder = { vocab_size: 623, hidden_size: 8, intermediate_size: 16, num_hidden_layers: 1, num_attention_heads: 2, max_position_embeddings: 16, eos_token_id: 622 };
const dit = { _class_name: 'Transformer2DModel', num_attention_heads: 2, attention_head_dim: 4, in_channels: 2, out_channels: 4, num_layers: 1, sample_size: 4, patch_size: 2, norm_type: 'ada_norm_zero', num_embeds_ada_norm: 2, norm_elementwise_affine: false, activation_fn: 'gelu-approximate', attention_bias: true };
const train = { steps: 4, batch_size: 2, learning_rate: 3e-3, weight_decay: 0, log_every: 1, checkpoint_every: 2, ema_decay: 0.5, seed: 3 };

beforeAll(async () => {
  dir = await mkdtemp(path.join(tmpdir(), 'bruit-kinds-'));
  const words = ['seven', 'two threes'];
  const lines: string[] = [];
  for (let i = 0; i < 6; i++) {
    await mkdir(at('images', `class${i % 2}`), { recursive: true });
    const name = `class${i % 2}/${i}.png`;
    // A bar that lies or stands: something to be learnt.
    const data = uniforms(i, {}, 64).map((u, p) => 0.2 * u + ((i % 2 ? p % 8 : Math.floor(p / 8)) < 4 ? 0.8 : 0));
    await writeFile(at('images', name), encodePng({ width: 8, height: 8, channels: 1, data: Uint8Array.from(data, (v) => Math.round(255 * v)) }));
    lines.push(JSON.stringify({ file_name: name, text: `a ${words[i % 2]}`, other: i }));
  }
  await writeFile(at('images', 'metadata.jsonl'), `${lines.join('\n')}\n`);
});
afterAll(async () => {
  await rm(dir, { recursive: true, force: true });
  engine.destroy();
});

const captions = () => ({ source: 'captions', path: at('images'), size: 8 });
const classes = () => ({ source: 'folder', path: at('images'), size: 8 });
const recipe = async (name: string, json: object): Promise<string> => {
  const file = at(`${name}.json`);
  await writeFile(file, JSON.stringify(json));
  return file;
};
const newest = async (run: string): Promise<string> => (await listCheckpoints(at(run))).at(-1)!.path;
const losses = async (run: string): Promise<number[]> => (await readFile(at(run, 'metrics.jsonl'), 'utf8')).trim().split('\n').map((line) => (JSON.parse(line) as { loss: number }).loss);

/** Runs a recipe, watching that GPU memory stays within what is said at the start. */
async function run(name: string, json: object, options: Partial<TrainRunOptions> = {}): Promise<void> {
  let [most, bound] = [0, Infinity];
  const original = engine.createBuffer.bind(engine);
  engine.createBuffer = (...args) => {
    const buffer = original(...args);
    most = Math.max(most, engine.liveBytes);
    return buffer;
  };
  const before = engine.liveBytes;
  try {
    await runTraining(engine, { recipe: await recipe(name, json), out: at(name), ...options, onStart: (_, __, peakBytes) => ((bound = peakBytes), (most = 0)) });
  } finally {
    engine.createBuffer = original;
  }
  expect(most).toBeGreaterThan(0);
  expect(most).toBeLessThanOrEqual(bound);
  expect(engine.liveBytes).toBe(before);
}

const folderBytes = async (folder: string): Promise<Record<string, string>> => {
  const files = (await readdir(folder, { recursive: true, withFileTypes: true })).filter((f) => f.isFile()).map((f) => path.join(f.parentPath, f.name)).sort();
  return Object.fromEntries(await Promise.all(files.map(async (f) => [path.relative(folder, f), (await readFile(f)).toString('base64')] as const)));
};

/** A trainer of a recipe, in memory. */
async function open(name: string): Promise<Trainer> {
  const { config, weights, tokenizer } = await loadRecipe(at(`${name}.json`));
  let { train: data } = await loadRecipeData(config);
  if (config.cacheLatents) {
    const store = await openWeights(weights.vae!, '.');
    data = await encodeDataset(engine, config.vae!.config, store, data);
    await store.close();
  }
  return Trainer.create(engine, config, data, new BatchLoader(data, { batchSize: config.batchSize, seed: config.seed }), { weights, ...(tokenizer && { tokenizer: await loadTokenizer(tokenizer, '') }) });
}

/** The slope of the loss along its gradient is the gradient's norm: central differences of the very same draws, learning nothing between them. */
async function checkSlope(name: string): Promise<void> {
  const trainer = await open(name);
  const { step } = trainer;
  try {
    const start = await step.readState();
    const batch = await (trainer as unknown as { loader: BatchLoader }).loader.next();
    const inputIds = (trainer as unknown as { inputIds?: (i: Uint32Array) => Int32Array; text?: unknown }).inputIds?.bind(trainer);
    const withText = trainer.config.textEncoder !== undefined;
    const lossWith = async (weights: { name: string; data: Float32Array }[]): Promise<number> => {
      weights.forEach((t) => step.weights.write(t.name, t.data));
      step.writeState(start);
      step.write({ images: batch.images, labels: batch.labels, ...(withText && { inputIds: inputIds!(batch.indices) }) });
      step.run();
      return (await step.read(step.values.loss))[0]!;
    };
    const weights = await step.weights.readAll();
    await lossWith(weights);
    const gradient = await step.gradients.readAll();
    const norm = Math.sqrt(gradient.reduce((sum, t) => sum + t.data.reduce((s, g) => s + g * g, 0), 0));
    expect(norm).toBeGreaterThan(0);
    const h = 2e-3 / norm;
    const moved = (sign: number) => weights.map((t, i) => ({ name: t.name, data: t.data.map((w, k) => w + sign * h * gradient[i]!.data[k]!) }));
    const slope = ((await lossWith(moved(1))) - (await lossWith(moved(-1)))) / (2 * h * norm);
    expect(Math.abs(slope / norm - 1), `slope ${slope}, norm ${norm}`).toBeLessThan(0.02);
  } finally {
    trainer.destroy();
  }
}

test("the training step's gradients of a text-conditioned U-Net are PyTorch's", async () => {
  const read = (name: string) => openTensorFile(goldenPath(`train_unet2d_condition/${name}`));
  const [io, weights] = [await read('io.safetensors'), await read('diffusion_pytorch_model.safetensors')];
  const { schedule } = goldenJson<{ schedule: object }>('train_unet2d_condition', 'case.json');
  const config = parseUNet2DConditionConfig(goldenJson('train_unet2d_condition', 'config.json'));
  const { betas, alphasCumprod } = noiseTables(parseSchedulerConfig({ _class_name: 'DDPMScheduler', ...schedule }));
  const text = await io.readF32('encoder_hidden_states');
  const step = await TrainingStep.create(engine, {
    batch: io.tensors.get('x0')!.shape as [number, number, number, number],
    buildModel: (ctx, sample, timestep) => unet2dCondition(ctx, config, { sample, timestep, encoderHiddenStates: ctx.graph.constant('text', io.tensors.get('encoder_hidden_states')!.shape, text) }),
    process: new DiffusionProcess(betas, alphasCumprod),
    loss: { predictionType: 'epsilon' },
    optimizer: { kind: 'adamw', beta1: 0.9, beta2: 0.999, eps: 1e-8, weightDecay: 0 },
    learningRates: [0],
    emaDecay: 0,
    seed: 0,
    labelled: false,
    recordedDraws: true,
  });
  await step.weights.load(weights);
  step.write({ images: await io.readF32('x0'), noise: await io.readF32('noise'), t: await io.readI32('t') });
  step.run();
  const [metrics] = await step.metrics(0);
  expect(Math.abs(metrics!.loss - (await io.readF32('loss'))[0]!)).toBeLessThan(1e-5);
  const gradients = await step.gradients.readAll();
  const largest = Math.max(...gradients.flatMap((t) => Array.from(t.data, Math.abs)));
  for (const { name, data } of gradients) {
    const expected = await io.readF32(`grad.${name}`);
    data.forEach((g, i) => expect(Math.abs(g - expected[i]!), name).toBeLessThan(1e-4 * largest));
  }
  await Promise.all([io.close(), weights.close()]);
  step.destroy();
});

test('an autoencoder learns, stops and goes on, and measures its scaling factor', async () => {
  const json = { model: vae, data: captions(), train: { ...train, steps: 12, learning_rate: 1e-2, checkpoint_every: 6, kl_weight: 1e-3 } };
  await run('vae', json);
  const all = await losses('vae');
  expect(all.at(-1)!).toBeLessThan(0.8 * all[0]!);
  await run('vae-parts', json, { stopAfter: 6 });
  await run('vae-parts', json, { resume: true });
  expect(await folderBytes(await newest('vae-parts'))).toEqual(await folderBytes(await newest('vae')));
  await checkSlope('vae');
  const { scaling_factor: factor } = JSON.parse(await readFile(path.join(await newest('vae'), 'vae_ema', 'config.json'), 'utf8')) as { scaling_factor: number };
  expect(factor).toBeGreaterThan(0.05);
  expect(factor).not.toBe(0.18215);
});

const textRecipe = async (more: object = {}) => ({ model: unet, text_encoder: textEncoder, tokenizer: 'recipes/scenes/tokenizer', vae: path.join(await newest('vae'), 'vae_ema'), scheduler: { prediction_type: 'v_prediction', _class_name: 'DDIMScheduler', timestep_spacing: 'trailing' }, data: captions(), train: { ...train, train_text_encoder: true, cache_latents: true, condition_dropout: 0.3, ...more } });

test('a text-conditioned latent U-Net with its text encoder: gradients, resuming, a pipeline that samples', async () => {
  const json = await textRecipe();
  await run('text', json);
  await run('text-parts', json, { stopAfter: 2 });
  await run('text-parts', json, { resume: true });
  expect(await folderBytes(await newest('text-parts'))).toEqual(await folderBytes(await newest('text')));
  await checkSlope('text');
  await exportCheckpoint(await newest('text'), at('pipeline'), 'F16');
  const pipeline = await StableDiffusionPipeline.fromFolder(engine, directory(at('pipeline')));
  const recorded = new Map<string, Float32Array>();
  const prompt = ['a seven', 'two threes'];
  const { data, shape } = await pipeline.generate({ prompt, num_inference_steps: 2, guidance_scale: 1, onRecord: (name, value) => recorded.set(name, value) });
  expect(shape).toEqual([2, 1, 8, 8]);
  expect(data.every(Number.isFinite)).toBe(true);
  // Text in the time embedding: what the pipeline computes once for all steps must not lose it.
  const { embeds } = await pipeline.encodePrompt(prompt);
  const { output } = await pipeline.unet.run((ctx, inputs) => ({
    output: unet2dCondition(ctx, pipeline.unet.config, { sample: inputs.add('x', [2, 2, 4, 4], recorded.get('unet_input')!), timestep: inputs.add('t', [2], Float32Array.of(999, 999)), encoderHiddenStates: inputs.add('text', [2, 16, 8], embeds) }),
  }));
  expect(recorded.get('timesteps')![0]).toBe(999);
  assertClose('model_output.0', recorded.get('model_output.0')!, output, 1e-5);
});

test('latents encoded in the step are those encoded before; checkpointing saves memory and changes no gradient', async () => {
  await recipe('plain', await textRecipe({ condition_dropout: 0, cache_latents: false }));
  await recipe('cached', await textRecipe({ condition_dropout: 0, gradient_checkpointing: true }));
  const gradients = [];
  const steps = [await open('plain'), await open('cached')];
  for (const trainer of steps) {
    await trainer.train({ until: 1 });
    gradients.push(await trainer.step.gradients.readAll());
  }
  const [plain, cached] = gradients as [typeof gradients[0], typeof gradients[0]];
  const largest = Math.max(...plain.flatMap((t) => Array.from(t.data, Math.abs)));
  expect(cached.map((t) => t.name)).toEqual(plain.map((t) => t.name));
  plain.forEach((t, i) => t.data.forEach((g, k) => expect(Math.abs(g - cached[i]!.data[k]!), t.name).toBeLessThan(2e-5 * largest)));
  expect(steps[1]!.step.plan.peakLiveBytes).toBeLessThan(steps[0]!.step.plan.peakLiveBytes);
  steps.forEach((s) => s.destroy());
});

test('LoRA: the base stays, the file is diffusers', async () => {
  const json = { pipeline: at('pipeline'), data: captions(), train: { ...train, method: 'lora', lora_rank: 2 } };
  await run('lora', json);
  await run('lora-parts', json, { stopAfter: 2 });
  await run('lora-parts', json, { resume: true });
  expect(await folderBytes(await newest('lora-parts'))).toEqual(await folderBytes(await newest('lora')));
  const pipeline = await StableDiffusionPipeline.fromFolder(engine, directory(at('pipeline')), { keep: true });
  const call = { prompt: 'a seven', num_inference_steps: 1, guidance_scale: 1 };
  const { data: without } = await pipeline.generate(call);
  const file = await openTensorFile(path.join(await newest('lora'), 'pytorch_lora_weights.safetensors'));
  expect([...file.tensors.keys()].filter((name) => !/^unet\..*\.(to_q|to_k|to_v|to_out\.0)\.lora\.(down|up)\.weight$/.test(name))).toEqual([]);
  const up = [...file.tensors.keys()].filter((name) => name.endsWith('up.weight'));
  for (const name of up) expect((await file.readF32(name)).some((v) => v !== 0), name).toBe(true);
  pipeline.loadLoraWeights(file);
  const { data: withLora } = await pipeline.generate(call);
  expect(withLora).not.toEqual(without);
  const specs = await pipeline.unet.use(async (weights) => weights.specs);
  expect((await readLora(file, 'unet', specs)).modules.size).toBe(up.length);
  await file.close();
  pipeline.destroy();
});

test('textual inversion learns the embeddings of one new word alone', async () => {
  const json = { pipeline: at('pipeline'), data: captions(), train: { ...train, method: 'textual_inversion', placeholder_token: 'seven', initializer_token: 'three', num_vectors: 2 } };
  await expect(run('inversion', json)).rejects.toThrow(/placeholder_token "seven" is a word that the tokenizer knows/);
  json.train.placeholder_token = '<foo>';
  await expect(run('inversion', json)).rejects.toThrow(/no caption of data set .* holds the placeholder_token "<foo>"/);
  const index = at('images', 'metadata.jsonl');
  const text = await readFile(index, 'utf8');
  await writeFile(index, text.replaceAll('a seven', 'a <bar>'));
  try {
    json.train.placeholder_token = '<bar>';
    await run('inversion', json, { overwrite: true });
    await checkSlope('inversion');
  } finally {
    await writeFile(index, text);
  }
  const file = await openTensorFile(path.join(await newest('inversion'), 'learned_embeds.safetensors'));
  expect([...file.tensors].map(([name, { shape }]) => [name, shape])).toEqual([['<bar>', [2, 8]]]);
  const learned = await file.readF32('<bar>');
  await file.close();
  const base = await openTensorFile(at('pipeline', 'text_encoder', 'model.safetensors'));
  const table = await base.readF32('text_model.embeddings.token_embedding.weight');
  await base.close();
  const [id] = (await loadTokenizer(directory('recipes/scenes/tokenizer'), '')).encode('three') as [number];
  const start = table.subarray(id * 8, (id + 1) * 8);
  expect(learned.some((v, i) => v !== start[i % 8])).toBe(true);
  // Four steps of Adam are no further than four learning rates.
  learned.forEach((v, i) => expect(Math.abs(v - start[i % 8]!)).toBeLessThan(4.1 * train.learning_rate));
});

test('a class-conditional DiT on latents', async () => {
  const json = { model: dit, vae: path.join(await newest('vae'), 'vae_ema'), data: classes(), train: { ...train, vlb_weight: 0.001, condition_dropout: 0.2 } };
  await writeFile(at('dit.json'), '');
  const index = at('images', 'metadata.jsonl');
  const text = await readFile(index, 'utf8');
  await rm(index);
  try {
    await run('dit', json);
    await checkSlope('dit');
  } finally {
    await writeFile(index, text);
  }
  await exportCheckpoint(await newest('dit'), at('dit-pipeline'), 'F32');
  const pipeline = await DiTPipeline.fromFolder(engine, directory(at('dit-pipeline')));
  const { shape, images } = await pipeline.generate({ class_labels: [0, 1], num_inference_steps: 1 });
  expect(shape).toEqual([2, 1, 8, 8]);
  expect(images.every(Number.isFinite)).toBe(true);
});

test('init_from starts where a checkpoint ended', async () => {
  const json = await textRecipe({ init_from: await newest('text') });
  await recipe('again', json);
  const trainer = await open('again');
  const store = await openTensorFile(path.join(await newest('text'), 'unet', 'diffusion_pytorch_model.safetensors'));
  for (const { name, data } of (await trainer.step.weights.readAll()).filter((t) => t.name.startsWith('unet.'))) expect(data, name).toEqual(await store.readF32(name.slice(5)));
  await store.close();
  trainer.destroy();
});

test('captions: lines that are wrong are named', async () => {
  const folder = at('captions');
  await mkdir(folder);
  const load = async (text: string) => {
    await writeFile(path.join(folder, 'metadata.jsonl'), text);
    return loadCaptionFolder(folder, { size: 8, channels: 1 });
  };
  await expect(loadCaptionFolder(at('nowhere'), { size: 8 })).rejects.toThrow(/metadata\.jsonl: there is no such file/);
  await expect(load('{"file_name": "a.png"}')).rejects.toThrow(/line 1: must have "file_name" and "text"/);
  await expect(load('\n{')).rejects.toThrow(/line 2: is not JSON/);
  await expect(load('{"file_name": "a.png", "text": "x"}')).rejects.toThrow(/line 1: there is no file/);
  await expect(load('\n')).rejects.toThrow(/names no images/);
  const set = await loadCaptionFolder(at('images'), { size: 8, channels: 1 });
  expect(set.captions!.slice(0, 2)).toEqual(['a seven', 'a two threes']);
  expect(subset(set, [3]).captions).toEqual(['a two threes']);
});

test('scenes are functions of seed and number; captions held back are never trained on', async () => {
  const { heldBack } = await loadMnist();
  const [a, b] = [await digitScenes(heldBack, { count: 40, seed: 1 }), await digitScenes(heldBack, { count: 20, seed: 1 })];
  expect(await a.get(7)).toEqual(await b.get(7));
  expect(a.plans[7]).toEqual(b.plans[7]);
  expect(a.captions.some(isHeldBack)).toBe(false);
  const share = (pairs?: number): number => Array.from({ length: 300 }, (_, i) => planScene(1, i, false, pairs)).filter((plan) => plan.digits.length === 2).length / 300;
  expect([share(), share(0.8), share(1)].map((v) => Math.round(v * 10))).toEqual([5, 8, 10]);
  const held = Array.from({ length: 300 }, (_, i) => planScene(1, i, true));
  expect(held.every((p) => isHeldBack(p.caption))).toBe(true);
  const tokenizer = await loadTokenizer(directory('recipes/scenes/tokenizer'), '');
  // One token a word.
  for (const { caption } of held) expect(tokenizer.encode(caption)).toHaveLength(caption.split(' ').length);
  for (const { image } of await Promise.all([0, 1, 2].map((i) => a.get(i)))) expect(Math.max(...image)).toBeLessThanOrEqual(1);
});
