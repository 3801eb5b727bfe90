/** First model calls of recorded pipelines: denoisers in configurations that the single-model goldens do not have, ControlNet, and LoRA. */
import { readFileSync } from 'node:fs';
import { afterAll, describe, expect, test, vi } from 'vitest';
import { Engine } from '../../src/engine/device';
import { Graph, type HostData, type Tensor } from '../../src/engine/graph';
import { concat } from '../../src/engine/ops/copy';
import { compile, type BufferView } from '../../src/engine/program';
import { openSafetensors, writeSafetensors, type TensorStore } from '../../src/io/safetensors';
import { bytesSource } from '../../src/io/source';
import { controlNet, forPositiveHalf, parseControlNetConfig } from '../../src/model/controlnet';
import type { ModelContext } from '../../src/model/layers';
import { LiveLora, MergedLoras, readLora, type Lora } from '../../src/model/lora';
import { Parameters, WeightStore } from '../../src/model/parameters';
import { conditionInputs, parseUNet2DConditionConfig, unet2dCondition, type ConditionSizes, type UNet2DConditionInputs } from '../../src/model/unet2d_condition';
import { testDevice } from '../helpers/device';
import { goldenJson, goldenPath } from '../helpers/golden';
import { assertClose, normal, random } from '../helpers/op_suite';

// Each test compiles kernels for a whole U-Net or two.
vi.setConfig({ testTimeout: 600_000 });
const engine = await Engine.create({ device: await testDevice() });
afterAll(() => engine.destroy());

const golden = (path: string): Promise<TensorStore> => openSafetensors(bytesSource(readFileSync(goldenPath(path)), path));
const read = async (file: TensorStore, name: string): Promise<Float32Array> => file.readF32(name);
const twice = (x: Float32Array): Float32Array => Float32Array.of(...x, ...x);
const rows = (x: Float32Array, n: number): Float32Array => Float32Array.from({ length: n }, () => x[0]!);

interface Model {
  /** The recorded name of its folder's weights. */
  readonly weights: string;
  readonly parameters: Parameters;
  readonly store?: WeightStore;
}

/** Compiles `outputs`, loads each model, runs on inputs given by the names of their leaves. */
async function run(graph: Graph, models: readonly Model[], outputs: readonly Tensor[], inputs: Readonly<Record<string, HostData>>, extra = new Map<Tensor, BufferView>()): Promise<Float32Array[]> {
  const stores = await Promise.all(
    models.map(async ({ weights, parameters, store }) => {
      if (store) return store;
      const made = new WeightStore(engine, parameters.specs.values());
      await made.load(await golden(weights));
      return made;
    }),
  );
  const bindings = new Map([...extra, ...models.flatMap(({ parameters }, i) => [...stores[i]!.bindings(parameters)])]);
  const program = await compile(engine, graph, { outputs, bindings, poison: true });
  for (const leaf of graph.leaves) if (leaf.kind === 'input' && inputs[leaf.name]) program.write(leaf, inputs[leaf.name]!);
  program.run();
  const values = await Promise.all(outputs.map((t) => program.read(t)));
  program.destroy();
  stores.forEach((s, i) => models[i]!.store ?? s.destroy());
  return values;
}

/** u + g·(c − u) of a doubled batch [negative; positive], over all channels of each image. */
function guided(output: Float32Array, scale: number): Float32Array {
  const half = output.length / 2;
  return Float32Array.from({ length: half }, (_, i) => output[i]! + scale * (output[half + i]! - output[i]!));
}

function unet(folder: string, sizes: ConditionSizes, { config: changed = {}, ...more }: Partial<UNet2DConditionInputs> & { config?: object } = {}, loras?: (graph: Graph) => readonly LiveLora[]) {
  const config = parseUNet2DConditionConfig({ ...goldenJson<object>(folder, 'config.json'), ...changed }, folder);
  const graph = new Graph();
  const parameters = new Parameters(graph);
  const live = loras?.(graph);
  const ctx: ModelContext = { graph, parameters, ...(live && { loras: live }) };
  const inputs = { ...conditionInputs(ctx, config, sizes), ...more };
  return { config, graph, parameters, ctx, inputs, build: () => unet2dCondition(ctx, config, inputs) };
}

describe('Stable Diffusion', () => {
  const sizes = { sample: [2, 16, 16], tokens: 77 } as const;
  const weights = 'pipeline_sd_tiny/unet/diffusion_pytorch_model.safetensors';
  const promptInputs = async (call: TensorStore, text: TensorStore, prefix = '') => ({
    sample: twice(await read(call, 'step_sample.0')),
    timestep: rows(await read(call, 'timesteps'), 2),
    encoder_hidden_states: Float32Array.of(...(await read(text, `${prefix}negative_prompt_embeds`)), ...(await read(text, `${prefix}prompt_embeds`))),
  });

  test.each([
    ['controlnet', 7.5, 0.8, false],
    ['controlnet_guess', 3, 1, true],
  ] as const)('ControlNet: %s', async (name, guidance, scale, guessMode) => {
    const call = await golden(`pipeline_controlnet_tiny/runs/${name}.safetensors`);
    const text = await golden('pipeline_sd_tiny/runs/text.safetensors');
    const { graph, ctx, config, inputs, parameters } = unet('pipeline_sd_tiny/unet', sizes);
    const own = new Parameters(graph);
    const controlConfig = parseControlNetConfig(goldenJson('pipeline_controlnet_tiny/controlnet', 'config.json'));
    const batch = guessMode ? 1 : 2;
    const image = graph.input('controlnet_cond', [batch, 3, 32, 32]);
    // In guess mode the ControlNet sees the positive half alone.
    const half = guessMode ? { sample: graph.input('one_sample', [1, 4, 16, 16]), timestep: graph.input('one_timestep', [1]), encoderHiddenStates: graph.input('positive', [1, 77, 24]) } : inputs;
    const residuals = controlNet({ ...ctx, parameters: own }, controlConfig, { ...half, controlnetCond: image, conditioningScale: guessMode ? scale : graph.constant('scale', [1], Float32Array.of(scale)), guessMode });
    const output = unet2dCondition(ctx, config, { ...inputs, control: guessMode ? forPositiveHalf(residuals) : residuals });
    const condition = await read(call, 'in.image');
    const values = await promptInputs(call, text);
    const [y] = await run(graph, [{ weights, parameters }, { weights: 'pipeline_controlnet_tiny/controlnet/diffusion_pytorch_model.safetensors', parameters: own }], [output], {
      ...values,
      controlnet_cond: guessMode ? condition : twice(condition),
      one_sample: await read(call, 'step_sample.0'),
      one_timestep: values.timestep.slice(0, 1),
      positive: await read(text, 'prompt_embeds'),
    });
    assertClose(name, guided(y!, guidance), await read(call, 'model_output.0'), 1e-4);
  });

  const specsOf = (): Parameters => {
    const { build, parameters } = unet('pipeline_sd_tiny/unet', sizes);
    build();
    return parameters;
  };
  const loraFile = async (kind: string): Promise<Lora> => readLora(await golden(`pipeline_lora_tiny/lora_${kind}.safetensors`), 'unet', specsOf().specs.values(), { layersPerBlock: 1 });

  test('LoRA in all three namings, merged and live; taken out, every bit is back', async () => {
    const call = await golden('pipeline_lora_tiny/runs/lora.safetensors');
    const inputs = await promptInputs(call, call, 'in.');
    const expected = await read(call, 'model_output.0');
    const files = { diffusers: await loraFile('diffusers'), peft: await loraFile('peft'), kohya: await loraFile('kohya') };
    for (const lora of Object.values(files)) expect(lora.modules.size).toBe(32);

    const { graph, build, parameters } = unet('pipeline_sd_tiny/unet', sizes);
    const output = build();
    const store = new WeightStore(engine, parameters.specs.values());
    await store.load(await golden(weights));
    const program = await compile(engine, graph, { outputs: [output], bindings: store.bindings(parameters) });
    for (const leaf of graph.leaves) if (leaf.kind === 'input') program.write(leaf, inputs[leaf.name as keyof typeof inputs]);
    const compute = async (): Promise<Float32Array> => {
      program.run();
      return program.read(output);
    };
    const before = await store.readAll();
    const merged = new MergedLoras(engine, store);
    for (const [name, lora] of Object.entries(files)) {
      await merged.set([{ lora, scale: 1 }]);
      assertClose(`merged ${name}`, guided(await compute(), 7.5), expected, 1e-4);
    }
    // Two adapters whose strengths add up to one are the same change.
    await merged.set([{ lora: files.kohya, scale: 0.25 }, { lora: files.peft, scale: 0.75 }]);
    assertClose('two at once', guided(await compute(), 7.5), expected, 1e-4);
    await merged.set([{ lora: files.diffusers, scale: 0.5 }]);
    const half = await compute();
    await merged.set([]);
    expect(await store.readAll()).toEqual(before);
    const without = await compute();
    expect(Math.max(...without.map((v, i) => Math.abs(v - half[i]!)))).toBeGreaterThan(1e-3);

    // Live, two adapters, the strength of one a tensor.
    let strength: Tensor | undefined;
    const live = unet('pipeline_sd_tiny/unet', sizes, {}, (g) => [new LiveLora(g, files.kohya, (strength = g.input('strength', [1]))), new LiveLora(g, files.diffusers, 0.25)]);
    const liveOutput = live.build();
    const adapters = live.ctx.loras!;
    const adapterStores = await Promise.all(adapters.map((a) => a.load(engine)));
    const models = [{ weights, parameters: live.parameters, store }, ...adapters.map((a, i) => ({ weights: '', parameters: a.parameters, store: adapterStores[i]! }))];
    expect(strength).toBeDefined();
    const [y] = await run(live.graph, models, [liveOutput], { ...inputs, strength: Float32Array.of(0.25) });
    assertClose('live', y!, half, 1e-5);
    adapterStores.forEach((s) => s.destroy());
    merged.destroy();
    program.destroy();
    store.destroy();
  });

  test('LoRA on convolutions, time projections and 1x1 projections: live and merged agree', async () => {
    const rand = random(7);
    const numbers = (n: number): Float32Array => Float32Array.from({ length: n }, () => 0.2 * normal(rand));
    const factors = (name: string, down: number[], up: number[]) => [
      { name: `unet.${name}.lora_A.weight`, dtype: 'F32' as const, shape: down, data: numbers(down.reduce((a, b) => a * b)) },
      { name: `unet.${name}.lora_B.weight`, dtype: 'F32' as const, shape: up, data: numbers(up.reduce((a, b) => a * b)) },
    ];
    const file = writeSafetensors([
      ...factors('conv_in', [2, 4, 3, 3], [8, 2, 1, 1]),
      ...factors('down_blocks.0.downsamplers.0.conv', [3, 8, 3, 3], [8, 3, 1, 1]),
      ...factors('down_blocks.0.resnets.0.time_emb_proj', [2, 32], [8, 2]),
      // Two axes for a 1x1 convolution, as trainers of linear layers write them.
      ...factors('down_blocks.0.attentions.0.proj_in', [2, 8], [8, 2]),
      { name: 'unet.conv_in.alpha', dtype: 'F32' as const, shape: [], data: Float32Array.of(3) },
    ]);
    const lora = await readLora(await openSafetensors(bytesSource(file, 'convolutions')), 'unet', specsOf().specs.values());
    expect(lora.modules.get('conv_in')).toMatchObject({ rank: 2, alpha: 3 });
    const inputs = { sample: numbers(2 * 4 * 256), timestep: Float32Array.of(1, 900), encoder_hidden_states: numbers(2 * 77 * 24) };
    const live = unet('pipeline_sd_tiny/unet', sizes, {}, (g) => [new LiveLora(g, lora, 0.7)]);
    const output = live.build();
    const adapter = live.ctx.loras![0]!;
    const store = new WeightStore(engine, live.parameters.specs.values());
    await store.load(await golden(weights));
    const [y] = await run(live.graph, [{ weights, parameters: live.parameters, store }, { weights: '', parameters: adapter.parameters, store: await adapter.load(engine) }], [output], inputs);
    const plain = unet('pipeline_sd_tiny/unet', sizes);
    const plainOutput = plain.build();
    await new MergedLoras(engine, store).set([{ lora, scale: 0.7 }]);
    const [merged] = await run(plain.graph, [{ weights, parameters: plain.parameters, store }], [plainOutput], inputs);
    assertClose('live', y!, merged!, 1e-5);
  });

  test('text and time projections hoisted out of the loop: the same prediction from a smaller program', async () => {
    const call = await golden('pipeline_controlnet_tiny/runs/controlnet.safetensors');
    const inputs = await promptInputs(call, await golden('pipeline_sd_tiny/runs/text.safetensors'));
    const whole = unet('pipeline_sd_tiny/unet', sizes);
    const wholeOutput = whole.build();

    const once = unet('pipeline_sd_tiny/unet', sizes);
    const kept = new Map<string, Tensor>();
    const keep: ModelContext = {
      ...once.ctx,
      hoist({ path }, build) {
        const value = build();
        kept.set(path, value);
        return value;
      },
    };
    unet2dCondition(keep, once.config, once.inputs);
    const loop = unet('pipeline_sd_tiny/unet', sizes);
    const taken: ModelContext = { ...loop.ctx, hoist: ({ path }) => loop.graph.input(path, kept.get(path)!.shape) };
    const loopOutput = unet2dCondition(taken, loop.config, loop.inputs);
    // Four transformers with keys and values, and a time projection for each residual block.
    expect([...kept.keys()].filter((path) => /attn2\.to_[kv]$/.test(path))).toHaveLength(8);
    expect([...kept.keys()].filter((path) => path.endsWith('time_emb_proj'))).toHaveLength(8);
    expect([...loop.parameters.specs.keys()].filter((name) => /attn2\.to_[kv]|time_emb_proj/.test(name))).toEqual([]);

    const [expected] = await run(whole.graph, [{ weights, parameters: whole.parameters }], [wholeOutput], inputs);
    const values = await run(once.graph, [{ weights, parameters: once.parameters }], [...kept.values()], inputs);
    const store = new WeightStore(engine, once.parameters.specs.values());
    await store.load(await golden(weights));
    const [y] = await run(loop.graph, [{ weights, parameters: loop.parameters, store }], [loopOutput], { ...inputs, ...Object.fromEntries([...kept.keys()].map((path, i) => [path, values[i]!])) });
    assertClose('prediction', y!, expected!, 1e-6);
    store.destroy();
  });
});

describe('DeepFloyd IF and unCLIP', () => {
  test('IF super-resolution: noise level as class, activation skipped, residuals divided', async () => {
    const call = await golden('pipeline_if_tiny/runs/stage2.safetensors');
    const text = await golden('pipeline_if_tiny/runs/text.safetensors');
    const { graph, build, parameters } = unet('pipeline_if_tiny/stage2/unet', { sample: [2, 32, 32], tokens: 77 });
    const [y] = await run(graph, [{ weights: 'pipeline_if_tiny/stage2/unet/diffusion_pytorch_model.safetensors', parameters }], [build()], {
      sample: await read(call, 'unet_input.0'),
      timestep: rows(await read(call, 'timesteps'), 2),
      class_labels: Float32Array.of(250, 250),
      encoder_hidden_states: Float32Array.of(...(await read(text, 'negative_prompt_embeds')), ...(await read(text, 'prompt_embeds'))),
    });
    assertClose('unet_output.0', y!, await read(call, 'unet_output.0'), 1e-4);
  });

  test("IF's first stage: keys of the pixels beside the text's", async () => {
    const call = await golden('pipeline_if_tiny/runs/stage1.safetensors');
    const text = await golden('pipeline_if_tiny/runs/text.safetensors');
    const { graph, build, parameters } = unet('pipeline_if_tiny/stage1/unet', { sample: [2, 16, 16], tokens: 77 });
    const [y] = await run(graph, [{ weights: 'pipeline_if_tiny/stage1/unet/diffusion_pytorch_model.safetensors', parameters }], [build()], {
      sample: twice(await read(call, 'step_sample.0')),
      timestep: rows(await read(call, 'timesteps'), 2),
      encoder_hidden_states: Float32Array.of(...(await read(text, 'negative_prompt_embeds')), ...(await read(text, 'prompt_embeds'))),
    });
    assertClose('unet_output.0', y!, await read(call, 'unet_output.0'), 1e-4);
  });

  test("unCLIP's decoder: image embeddings as class labels, masked text before the pixels", async () => {
    const call = await golden('pipeline_unclip_tiny/runs/unclip.safetensors');
    const text = await golden('pipeline_unclip_tiny/runs/text.safetensors');
    const tokens = 20;
    const { graph, build, parameters } = unet('pipeline_unclip_tiny/decoder', { sample: [4, 16, 16], tokens, attentionMask: tokens });
    const mask = [...(await text.readI32('negative_attention_mask')), ...(await text.readI32('attention_mask'))];
    const output = build();
    const [y] = await run(graph, [{ weights: 'pipeline_unclip_tiny/decoder/diffusion_pytorch_model.safetensors', parameters }], [output], {
      sample: twice(await read(call, 'decoder.step_sample.0')),
      timestep: rows(await read(call, 'decoder.timesteps'), 4),
      class_labels: await read(call, 'text_proj.additive_clip_time_embeddings'),
      encoder_hidden_states: await read(call, 'text_proj.encoder_hidden_states'),
      // Four tokens of the image embedding come first and are never masked.
      attention_mask: Float32Array.from({ length: 4 * tokens }, (_, i) => (i % tokens < 4 ? 1 : mask[Math.floor(i / tokens) * 16 + (i % tokens) - 4]!)),
    });
    const expected = await read(call, 'decoder.model_output.0');
    // Three channels of noise are guided; those of the variance are the positive half's.
    const [noise, half] = [guided(y!, 8), y!.length / 2];
    const actual = noise.map((v, i) => (Math.floor(i / 256) % 6 < 3 ? v : y![half + i]!));
    assertClose('decoder.model_output.0', actual, expected, 1e-4);
  });
});

test('joined inputs of an inpainting U-Net are counted', () => {
  const { graph, config, ctx, inputs } = unet('pipeline_sd_tiny/unet', { sample: [2, 16, 16], tokens: 77 }, { config: { in_channels: 9 } });
  const latents = graph.input('latents', [2, 4, 16, 16]);
  const joined = concat([latents, graph.input('mask', [2, 1, 16, 16]), graph.input('masked', [2, 4, 16, 16])], 1);
  expect(unet2dCondition(ctx, config, { ...inputs, sample: joined }).shape).toEqual([2, 4, 16, 16]);
  expect(() => unet2dCondition(ctx, config, { ...inputs, sample: latents })).toThrow('UNet2DConditionModel: sample [2,4,16,16] must be [N, 9, H, W] (in_channels of its config)');
});
