import { describe, expect, test } from 'vitest';
import { matchCheckpoint } from '../../src/io/checkpoint';
import { writeSafetensors, type TensorStore } from '../../src/io/safetensors';
import { golden, messageOf, openBytes } from './helpers';

const store = (shapes: Record<string, number[]>): Promise<TensorStore> =>
  openBytes(writeSafetensors(Object.entries(shapes).map(([name, shape]) => ({ name, dtype: 'U8' as const, shape, data: new Uint8Array(shape.reduce((a, b) => a * b, 1)) }))), 'm.safetensors');

const model = (shapes: Record<string, number[]>): Map<string, number[]> => new Map(Object.entries(shapes));

const errorOf = (file: TensorStore, expected: Map<string, number[]>, options = {}): Promise<string> => messageOf('checkpoint', (async () => matchCheckpoint(file, expected, options))());

describe('a fit', () => {
  test('old attention names are matched by default', async () => {
    const old = await openBytes(golden('unet2d_old_names/diffusion_pytorch_model.safetensors'));
    const shapes = new Map([...old.tensors].map(([name, { shape }]) => [name.replace('.query.', '.to_q.').replace('.key.', '.to_k.').replace('.value.', '.to_v.').replace('.proj_attn.', '.to_out.0.'), shape]));
    const mapping = matchCheckpoint(old, shapes);
    expect(mapping.size).toBe(144);
    expect(mapping.get('mid_block.attentions.0.to_out.0.weight')).toBe('mid_block.attentions.0.proj_attn.weight');
    expect(mapping.get('conv_in.bias')).toBe('conv_in.bias');
  });

  test('a rename replaces names, null leaves a tensor aside, scalars are shapes too', async () => {
    const file = await store({ 'unet.w': [2], 'unet.s': [], position_ids: [1, 77] });
    const rename = (name: string): string | null => (name === 'position_ids' ? null : name.slice(5));
    expect([...matchCheckpoint(file, model({ s: [], w: [2] }), { rename })]).toEqual([['s', 'unet.s'], ['w', 'unet.w']]);
  });

  test('a tied weight is found by either name, and a constant is no weight', async () => {
    const expected = model({ 'shared.weight': [3] });
    const [first, second, both] = await Promise.all([store({ 'shared.weight': [3] }), store({ 'encoder.embed_tokens.weight': [3] }), store({ 'encoder.embed_tokens.weight': [3], 'shared.weight': [3], 'text_model.embeddings.position_ids': [1, 77] })]);
    expect([first, second, both].map((file) => matchCheckpoint(file, expected).get('shared.weight'))).toEqual(['shared.weight', 'encoder.embed_tokens.weight', 'shared.weight']);
    const fourier = await Promise.all([store({ 'time_proj.W': [3], 'time_proj.weight': [3] }), store({ 'time_proj.W': [3] })]);
    expect(fourier.map((file) => matchCheckpoint(file, model({ 'time_proj.weight': [3] })).get('time_proj.weight'))).toEqual(['time_proj.weight', 'time_proj.W']);
  });
});

describe('a misfit', () => {
  test('lists everything in one error', async () => {
    const file = await store({ 'conv_in.weight': [4, 3, 3, 3], 'mid.to_q.weigth': [2], zebra: [1], 'proj.weight': [4, 2, 1, 1], scalar: [1] });
    expect(await errorOf(file, model({ 'conv_in.weight': [4, 4, 3, 3], 'mid.to_q.weight': [2], 'proj.weight': [4, 2], scalar: [], 'unlike.everything.else': [9] }))).toBe(`m.safetensors: its 5 tensors do not fit the model's 5 parameters
missing (2):
  mid.to_q.weight (the file has mid.to_q.weigth: is that it?)
  unlike.everything.else
unexpected (2):
  mid.to_q.weigth
  zebra
wrong shape (3):
  conv_in.weight is [4,3,3,3], the model wants [4,4,3,3]
  proj.weight is [4,2,1,1], the model wants [4,2] (a 1x1 convolution against a linear layer: see use_linear_projection in config.json)
  scalar is [1], the model wants []`);
  });

  test('two tensors for one parameter', async () => {
    const file = await store({ 'attentions.0.query.weight': [1], 'attentions.0.to_q.weight': [1] });
    expect(await errorOf(file, model({ 'attentions.0.to_q.weight': [1] }))).toMatch(/given twice \(1\):\n {2}attentions\.0\.to_q\.weight: both attentions\.0\.query\.weight and attentions\.0\.to_q\.weight/);
  });

  test('long lists are cut and counted', async () => {
    const many = (prefix: string): Record<string, number[]> => Object.fromEntries(Array.from({ length: 500 }, (_, i) => [`${prefix}.${i}.weight`, [1]]));
    const told = await errorOf(await store(many('blocks')), model(many('layers_of_another_kind')));
    expect(told).toMatch(/missing \(500\):(\n {2}\S+){10}\n {2}… and 490 more\nunexpected \(500\):(\n {2}\S+){10}\n {2}… and 490 more$/);
  });

  const unet = { 'conv_in.weight': [1], 'down_blocks.0.resnets.0.conv1.weight': [1], 'mid_block.attentions.0.to_q.weight': [1] };
  test.each<[string, Record<string, number[]>, RegExp]>([
    ['a kohya LoRA', { 'lora_unet_down_blocks_0_attn1_to_q.lora_down.weight': [1] }, /LoRA/],
    ['a peft LoRA', { 'unet.down_blocks.0.attn1.to_q.lora_A.weight': [1] }, /LoRA/],
    ['a diffusers LoRA', { 'unet.mid_block.attn1.processor.to_q_lora.up.weight': [1] }, /LoRA/],
    ['an original Stable Diffusion', { 'model.diffusion_model.input_blocks.0.0.weight': [1], 'first_stage_model.decoder.up.0.weight': [1] }, /original layout/],
    ['a VAE', { 'decoder.up_blocks.0.resnets.0.conv1.weight': [1], 'encoder.conv_in.weight': [1] }, /VAE \(AutoencoderKL\)/],
    ['a CLIP text encoder', { 'text_model.embeddings.token_embedding.weight': [1] }, /CLIP text encoder/],
    ['a text-conditioned U-Net', { 'conv_in.weight': [1], 'down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight': [1] }, /UNet2DConditionModel/],
    ['names with a prefix', Object.fromEntries(Object.entries(unet).map(([name, shape]) => [`module.${name}`, shape])), /puts "module\." before the model's names/],
    ['nothing', {}, /no tensors at all/],
  ])('tells %s', async (_, shapes, hint) => {
    expect((await errorOf(await store(shapes), model(unet))).split('\n').at(-1)).toMatch(hint);
  });

  test('a file of the right family gets no such hint', async () => {
    expect(await errorOf(await store({ 'conv_in.weight': [1] }), model(unet))).not.toMatch(/looks like/);
  });
});
