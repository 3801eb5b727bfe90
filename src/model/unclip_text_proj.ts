/**
 * UnCLIPTextProjModel: what an unCLIP decoder (DALL·E 2, Ramesh et al. 2022, section 2.1; Karlo) is given in place of a text: the image embedding added to
 * the time embedding and as some more tokens. Built from diffusers' config.json as it is; weights go by diffusers' names.
 */
import type { Tensor } from '../engine/graph';
import { concat, transpose } from '../engine/ops/copy';
import { add, cast, expand } from '../engine/ops/pointwise';
import { reshape } from '../engine/ops/reshape';
import { ConfigReader } from './config';
import { checkInput, layerNorm, linear, ownWeight, type ModelContext } from './layers';

/** Keys, names and defaults are diffusers'. */
export interface UnCLIPTextProjConfig {
  /** Tokens that an image embedding becomes. */
  readonly clip_extra_context_tokens: number;
  readonly clip_embeddings_dim: number;
  /** Width of the decoder's time embedding. */
  readonly time_embed_dim: number;
  readonly cross_attention_dim: number;
}

/** Reads diffusers' config.json; unknown entries are errors that name them. */
export function parseUnCLIPTextProjConfig(json: unknown, file = 'config.json'): UnCLIPTextProjConfig {
  const c = new ConfigReader(json, file, 'UnCLIPTextProjModel');
  const required = (key: string): number => c.nullableInteger(key, null) ?? c.fail(`"${key}" is missing`);
  const config = {
    clip_extra_context_tokens: c.integer('clip_extra_context_tokens', 4),
    clip_embeddings_dim: c.integer('clip_embeddings_dim', 768),
    time_embed_dim: required('time_embed_dim'),
    cross_attention_dim: required('cross_attention_dim'),
  };
  c.finish();
  return config;
}

export interface UnCLIPTextProjInputs {
  /** [N, clip_embeddings_dim]. */
  readonly imageEmbeds: Tensor;
  /** Pooled and projected text, [N, clip_embeddings_dim]; [2N, …] with guidance, that of the negative prompts first. */
  readonly promptEmbeds: Tensor;
  /** The text encoder's last hidden state, [N or 2N, T, D]; D is the width of its layers. */
  readonly textEncoderHiddenStates: Tensor;
}

/**
 * Adds the projection to the graph. With twice as many texts as images, the learned embedding that stands for no image is put before the images'.
 * Returns the decoder's class_labels [N or 2N, time_embed_dim] and encoder_hidden_states [N or 2N, clip_extra_context_tokens + T, cross_attention_dim].
 */
export function unclipTextProj(ctx: ModelContext, config: UnCLIPTextProjConfig, { imageEmbeds, promptEmbeds, textEncoderHiddenStates: text }: UnCLIPTextProjInputs): { additiveClipTimeEmbeddings: Tensor; encoderHiddenStates: Tensor } {
  const model = 'UnCLIPTextProjModel';
  const { clip_embeddings_dim: width, clip_extra_context_tokens: extra, cross_attention_dim: cross, time_embed_dim: time } = config;
  checkInput(model, 'image_embeds', imageEmbeds, ['N', width], 'clip_embeddings_dim of its config');
  const [n] = imageEmbeds.shape as [number];
  const guided = promptEmbeds.shape[0] === 2 * n;
  const batch = guided ? 2 * n : n;
  checkInput(model, 'prompt_embeds', promptEmbeds, [batch, width], 'as many as images, or twice as many');
  checkInput(model, 'text_encoder_hidden_states', text, [batch, 'T', 'D']);
  const none = ownWeight(ctx, 'learned_classifier_free_guidance_embeddings', [width], { kind: 'constant', value: 0 });
  const images = guided ? concat([expand(reshape(none, [1, width]), [n, width]), cast(imageEmbeds, 'f32')], 0) : imageEmbeds;
  const additive = add(linear(ctx, 'clip_image_embeddings_project_to_time_embeddings', images, time), linear(ctx, 'embedding_proj', promptEmbeds, time));
  // The projection's columns are [channel][token].
  const tokens = transpose(reshape(linear(ctx, 'clip_extra_context_tokens_proj', images, extra * cross), [batch, cross, extra]), [0, 2, 1]);
  const projected = layerNorm(ctx, 'text_encoder_hidden_states_norm', linear(ctx, 'encoder_hidden_states_proj', text, cross));
  return { additiveClipTimeEmbeddings: additive, encoderHiddenStates: concat([tokens, projected], 1) };
}
