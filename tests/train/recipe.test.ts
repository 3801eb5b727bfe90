/** Recipes: what they mean, and what in them cannot be meant. */
import { expect, test } from 'vitest';
import { parseTrainConfig, type PretrainedComponents } from '../../src/train/config';

type Json = Record<string, unknown>;
const unet2d = { in_channels: 1, out_channels: 1, block_out_channels: [4, 8], down_block_types: ['DownBlock2D', 'DownBlock2D'], up_block_types: ['UpBlock2D', 'UpBlock2D'], norm_num_groups: 2 };
const vae = { _class_name: 'AutoencoderKL', in_channels: 1, out_channels: 1, block_out_channels: [4, 8, 8], down_block_types: Array(3).fill('DownEncoderBlock2D'), up_block_types: Array(3).fill('UpDecoderBlock2D'), latent_channels: 4, norm_num_groups: 2 };
const condition = { _class_name: 'UNet2DConditionModel', sample_size: 8, block_out_channels: [4, 8], down_block_types: ['DownBlock2D', 'CrossAttnDownBlock2D'], up_block_types: ['UpBlock2D', 'UpBlock2D'], attention_head_dim: 2, cross_attention_dim: 8, norm_num_groups: 2 };
const dit = { _class_name: 'Transformer2DModel', num_attention_heads: 2, attention_head_dim: 4, in_channels: 4, num_layers: 1, sample_size: 8, patch_size: 2, norm_type: 'ada_norm_zero', num_embeds_ada_norm: 10 };
const text = { model: condition, text_encoder: { hidden_size: 8, num_attention_heads: 2, vocab_size: 623 }, tokenizer: 'folder', vae, data: { source: 'scenes' }, train: { train_text_encoder: true } };
const all: PretrainedComponents = { model: true, text_encoder: true, vae: true };

const parse = (json: Json, pretrained: PretrainedComponents = { vae: true }) => parseTrainConfig(json, 'r.json', pretrained);
const withTrain = (json: Json, train: Json): Json => ({ ...json, train: { ...(json.train as Json | undefined), ...train } });
const without = (json: Json, key: string): Json => Object.fromEntries(Object.entries(json).filter(([k]) => k !== key));

test('each kind is told by its class', () => {
  expect(parse({ model: unet2d }).model.kind).toBe('UNet2DModel');
  expect(parse({ model: vae }).klWeight).toBe(1e-4);
  expect(parse(text)).toMatchObject({ model: { kind: 'UNet2DConditionModel' }, method: 'full', trainTextEncoder: true, data: { size: 32, count: 20000 } });
  expect(parse({ model: dit, vae, data: { size: 32 } }).vae!.config.latent_channels).toBe(4);
  expect(parse(withTrain(text, { method: 'lora', train_text_encoder: false, lora_rank: 8 }), all).lora).toEqual({ rank: 8, target: 'attention' });
  expect(parse(withTrain(text, { method: 'textual_inversion', train_text_encoder: false, placeholder_token: '<x>', initializer_token: 'one' }), all).textualInversion).toEqual({ placeholder: '<x>', initializer: 'one', vectors: 1 });
});

const refused: [string, Json, RegExp, PretrainedComponents?][] = [
  ['an unknown class', { model: { _class_name: 'VQModel' } }, /_class_name is "VQModel"; what can be trained is UNet2DModel, UNet2DConditionModel/],
  ['an unknown entry', { modle: {} }, /unknown entry "modle"/],
  ['a folder that nobody has read', { model: 'folder' }, /"model" is a folder, which must be read before/],
  ['an autoencoder with a scheduler', { model: vae, scheduler: { _class_name: 'DDPMScheduler' } }, /"scheduler" has no meaning where an AutoencoderKL is trained/],
  ['an autoencoder with dropped conditions', withTrain({ model: vae }, { condition_dropout: 0.1 }), /"condition_dropout" has no meaning/],
  ['an autoencoder of other images than it makes', { model: { ...vae, out_channels: 3 } }, /in_channels 1 and out_channels 3 must be equal/],
  ['an autoencoder of a size that it cannot halve', { model: vae, data: { size: 30 } }, /size 30 must be a multiple of the autoencoder's factor, 4/],
  ['a KL weight for a denoiser', withTrain({ model: unet2d }, { kl_weight: 1 }), /kl_weight is for an AutoencoderKL/],
  ['text without an encoder', without(text, 'text_encoder'), /trained with text: give "text_encoder"/],
  ['text without a tokenizer', without(text, 'tokenizer'), /trained with text: give "tokenizer"/],
  ['text without captions', { ...text, data: { source: 'mnist', size: 32 } }, /source "mnist" has no captions/],
  ['text without an autoencoder', without(text, 'vae'), /trained on latents: give "vae"/],
  ['text of another width', { ...text, text_encoder: { hidden_size: 16, num_attention_heads: 2 } }, /reads text of width 8 \(cross_attention_dim\), the text encoder has hidden_size 16/],
  ['a fresh text encoder that is frozen', withTrain(text, { train_text_encoder: false }), /no weights yet, so it must be trained too/],
  ['a fresh autoencoder', text, /vae: only a folder is possible/, {}],
  ['latents of other channels', { ...text, vae: { ...vae, latent_channels: 3 } }, /in_channels 4 must be the autoencoder's latent_channels, 3/],
  ['latents of another size', { ...text, model: { ...condition, sample_size: 16 } }, /sample_size 16 must be the size of the latents, 8/],
  ['classes beside text', { ...text, model: { ...condition, num_class_embeds: 3 } }, /class embeddings beside the text are not trained/],
  ['sizes beside text', { ...text, model: { ...condition, addition_embed_type: 'text_time', addition_time_embed_dim: 8, projection_class_embeddings_input_dim: 56 } }, /"text_time" needs conditions beside the text/],
  ['mirrored latents', { ...withTrain(text, { cache_latents: true }), data: { source: 'scenes', flip: true } }, /cache_latents contradicts "flip"/],
  ['latents of nothing', withTrain({ model: unet2d }, { cache_latents: true }), /cache_latents needs a "vae"/],
  ['text for pixels', { model: unet2d, text_encoder: {} }, /"text_encoder" is for a UNet2DConditionModel; a UNet2DModel reads no text/],
  ['DiT on pixels', { model: dit, data: { size: 8 } }, /a DiT is trained on latents/],
  ['a transformer that is no DiT', { model: { _class_name: 'Transformer2DModel', in_channels: 4, norm_num_groups: 2, num_attention_heads: 2, attention_head_dim: 2 }, vae }, /the transformer that is trained is DiT/],
  ['LoRA of nothing', withTrain(text, { method: 'lora', train_text_encoder: false }), /method "lora" changes a model that is trained already/, { vae: true, text_encoder: true }],
  ['LoRA with a trained encoder', withTrain(text, { method: 'lora' }), /train_text_encoder contradicts method "lora"/, all],
  ['a rank without LoRA', withTrain(text, { lora_rank: 4 }), /"lora_rank" is for method "lora"/],
  ['a new word without its method', withTrain(text, { placeholder_token: '<x>' }), /"placeholder_token" is for method "textual_inversion"/],
  ['a new word that is two', withTrain(text, { method: 'textual_inversion', train_text_encoder: false, placeholder_token: 'a b', initializer_token: 'one' }), /needs "placeholder_token" \(one word\)/, all],
  ['a new word for pixels', withTrain({ model: unet2d }, { method: 'textual_inversion' }), /needs a UNet2DConditionModel/, all],
  ['an adapter of an autoencoder', withTrain({ model: vae }, { method: 'lora' }), /method "lora" is for denoisers/, all],
  ['dropping labels that there are not', withTrain({ model: unet2d }, { condition_dropout: 0.1 }), /condition_dropout needs a model with num_class_embeds/],
  ['a delta of no loss', withTrain({ model: unet2d }, { huber_delta: 0.5 }), /huber_delta is for loss "huber"/],
  ['a delta of nothing', withTrain({ model: unet2d }, { loss: 'huber', huber_delta: 0 }), /huber_delta 0 is not above 0/],
  ['an unknown loss', withTrain({ model: unet2d }, { loss: 'l2' }), /"loss" is "l2", but must be one of mse, l1, huber/],
  ['an autoencoder with a loss of its own', withTrain({ model: vae }, { loss: 'l1' }), /"loss" has no meaning/],
  ['dropping always', withTrain(text, { condition_dropout: 1 }), /condition_dropout 1 is not in \[0, 1\)/],
  ['a variance that is not learned', withTrain({ model: dit, vae, data: { size: 32 } }, { vlb_weight: 0.001 }), /vlb_weight needs out_channels = 2·in_channels = 8, the model has 4/],
  ['samples on the way', withTrain(text, { sample_every: 10 }), /sample_every is for UNet2DModel/],
  ['a share of pairs for images', { model: unet2d, data: { pairs: 0.5 } }, /"pairs" is for source "scenes"/],
  ['a share of pairs beyond 1', { ...text, data: { source: 'scenes', pairs: 1.5 } }, /"pairs" is 1.5: the share of scenes with two digits/],
  ['a number of scenes for images', { model: unet2d, data: { count: 5 } }, /"count" is for source "scenes"/],
  ['captions without a folder', { ...text, data: { source: 'captions' } }, /source "captions" needs a "path"/],
];

test.each(refused)('refuses %s', (_, json, message, pretrained) => {
  expect(() => parse(json, pretrained)).toThrow(message);
});
