/**
 * PriorTransformer: predicts CLIP's image embedding from its text embedding by diffusion (DALL·E 2, Ramesh et al. 2022; Karlo, Kandinsky), as diffusers
 * defines it. Built from diffusers' config.json as it is; weights go by diffusers' names.
 */
import { BruitError } from '../engine/errors';
import type { Tensor } from '../engine/graph';
import { concat, pad, slice } from '../engine/ops/copy';
import { add, cast, expand, mul, type PointwiseName } from '../engine/ops/pointwise';
import { reshape } from '../engine/ops/reshape';
import { timestepEmbedding } from '../engine/ops/timestep_embedding';
import { ConfigReader } from './config';
import { activationName, checkInput, layerNorm, linear, ownWeight, recomputable, timestepMlp, type ModelContext } from './layers';
import { maskToBias, transformerBlock } from './transformer';

/** Keys, names and defaults are diffusers'. */
export interface PriorTransformerConfig {
  readonly num_attention_heads: number;
  readonly attention_head_dim: number;
  readonly num_layers: number;
  readonly embedding_dim: number;
  /** Tokens of the text. */
  readonly num_embeddings: number;
  /** Tokens behind it: projected embedding, time, image embedding, and the one that the prediction is read from. */
  readonly additional_embeddings: number;
  readonly dropout: number;
  readonly time_embed_act_fn: PointwiseName;
  readonly norm_in_type: 'layer' | null;
  readonly embedding_proj_norm_type: 'layer' | null;
  readonly encoder_hid_proj_type: 'linear' | null;
  readonly added_emb_type: 'prd' | null;
  readonly time_embed_dim: number;
  readonly embedding_proj_dim: number;
  readonly clip_embed_dim: number;
}

/** Reads diffusers' config.json; unknown or contradictory entries are errors that name them. */
export function parsePriorTransformerConfig(json: unknown, file = 'config.json'): PriorTransformerConfig {
  const c = new ConfigReader(json, file, 'PriorTransformer');
  const [heads, headDim, embedding] = [c.integer('num_attention_heads', 32), c.integer('attention_head_dim', 64), c.integer('embedding_dim', 768)];
  const config: PriorTransformerConfig = {
    num_attention_heads: heads,
    attention_head_dim: headDim,
    num_layers: c.integer('num_layers', 20),
    embedding_dim: embedding,
    num_embeddings: c.integer('num_embeddings', 77),
    additional_embeddings: c.integer('additional_embeddings', 4, 0),
    dropout: c.number('dropout', 0),
    time_embed_act_fn: activationName(c.string('time_embed_act_fn', 'silu'), 'time_embed_act_fn'),
    norm_in_type: c.nullableChoice('norm_in_type', ['layer'], null),
    embedding_proj_norm_type: c.nullableChoice('embedding_proj_norm_type', ['layer'], null),
    encoder_hid_proj_type: c.nullableChoice('encoder_hid_proj_type', ['linear'], 'linear'),
    added_emb_type: c.nullableChoice('added_emb_type', ['prd'], 'prd'),
    time_embed_dim: c.nullableInteger('time_embed_dim', null) ?? heads * headDim,
    embedding_proj_dim: c.nullableInteger('embedding_proj_dim', null) ?? embedding,
    clip_embed_dim: c.nullableInteger('clip_embed_dim', null) ?? embedding,
  };
  c.finish();
  if (config.dropout < 0 || config.dropout >= 1) c.fail(`dropout ${config.dropout} is not in [0, 1)`);
  return config;
}

export interface PriorTransformerInputs {
  /** Noisy image embedding [N, embedding_dim]. */
  readonly hiddenStates: Tensor;
  /** f32 [N]. */
  readonly timestep: Tensor;
  /** What the prediction is conditioned on: the text embedding [N, embedding_proj_dim]. */
  readonly projEmbedding: Tensor;
  /** Text tokens [N, num_embeddings, embedding_dim]. */
  readonly encoderHiddenStates?: Tensor | undefined;
  /** 1 keeps a token, 0 discards it: [N, num_embeddings]. Without it nothing is masked, not even causally. */
  readonly attentionMask?: Tensor | undefined;
}

/** Adds the forward pass to the graph; returns the predicted embedding [N, clip_embed_dim] ([N, 1, clip_embed_dim] where there is no token of its own for it). */
export function priorTransformer(ctx: ModelContext, config: PriorTransformerConfig, inputs: PriorTransformerInputs): Tensor {
  const { hiddenStates, timestep, projEmbedding, encoderHiddenStates: text, attentionMask } = inputs;
  const model = 'PriorTransformer';
  const [n] = hiddenStates.shape as [number];
  const width = config.num_attention_heads * config.attention_head_dim;
  const type = ctx.computeType ?? 'f32';
  checkInput(model, 'hidden_states', hiddenStates, ['N', config.embedding_dim], 'embedding_dim of its config');
  checkInput(model, 'proj_embedding', projEmbedding, [n, config.embedding_proj_dim], 'embedding_proj_dim of its config');
  if (config.encoder_hid_proj_type !== null && !text) throw new BruitError('input', `${model}: encoder_hid_proj_type "${config.encoder_hid_proj_type}" needs encoder_hidden_states`);
  if (text) checkInput(model, 'encoder_hidden_states', text, [n, 'M', config.encoder_hid_proj_type === null ? width : config.embedding_dim], 'embedding_dim of its config');

  const one = (t: Tensor): Tensor => reshape(cast(t, type), [n, 1, width]);
  const time = timestepMlp(ctx, 'time_embedding', timestepEmbedding(timestep, { dim: width, flipSinToCos: true, freqShift: 0 }), { width: config.time_embed_dim, out: width, act: config.time_embed_act_fn });
  const projected = linear(ctx, 'embedding_proj', config.embedding_proj_norm_type ? layerNorm(ctx, 'embedding_proj_norm', projEmbedding) : projEmbedding, width);
  const tokens = text ? [config.encoder_hid_proj_type ? linear(ctx, 'encoder_hidden_states_proj', cast(text, type), width) : cast(text, type)] : [];
  tokens.push(one(projected), one(time), one(linear(ctx, 'proj_in', hiddenStates, width)));
  const before = (text?.shape[1] ?? 0) + 2;
  if (config.added_emb_type === 'prd') tokens.push(cast(expand(ownWeight(ctx, 'prd_embedding', [1, 1, width], { kind: 'constant', value: 0 }), [n, 1, width]), type));
  let h = concat(tokens, 1);
  const total = h.shape[1]!;

  const positions = config.num_embeddings + config.additional_embeddings;
  let position = ownWeight(ctx, 'positional_embedding', [1, positions, width], { kind: 'constant', value: 0 });
  // Checkpoints may have positions for the image embedding alone: the tokens around it then have none.
  if (positions < total) position = pad(position, 1, before, config.added_emb_type === 'prd' ? 1 : 0);
  if (position.shape[1] !== total) throw new BruitError('shape', `${model}: ${total} tokens, but num_embeddings and additional_embeddings of the config give positions for ${positions}`);
  h = add(h, position);
  const mask = attentionMask && causalMask(ctx, model, config, attentionMask, total);
  if (config.norm_in_type) h = layerNorm(ctx, 'norm_in', h);
  for (let i = 0; i < config.num_layers; i++) {
    h = recomputable(ctx, () =>
      transformerBlock(ctx, `transformer_blocks.${i}`, h, { heads: config.num_attention_heads, headDim: config.attention_head_dim, activation: 'gelu', attentionBias: true, dropout: config.dropout, crossAttentionDim: null, mask }),
    );
  }
  h = layerNorm(ctx, 'norm_out', h);
  h = config.added_emb_type === 'prd' ? reshape(slice(h, 1, total - 1, 1), [n, width]) : slice(h, 1, before, total - before);
  clipStatistics(ctx, config);
  return cast(linear(ctx, 'proj_to_clip_embeddings', h, config.clip_embed_dim), 'f32');
}

/** Both masks add −10000, where both apply −20000: [N,1,T,T]. The text's covers the tokens behind it with zeros. */
function causalMask({ graph }: ModelContext, model: string, config: PriorTransformerConfig, mask: Tensor, total: number): Tensor {
  checkInput(model, 'attention_mask', mask, ['N', total - config.additional_embeddings], 'the tokens but for additional_embeddings of its config');
  const causal = new Float32Array(total * total);
  for (let t = 0; t < total; t++) causal.fill(-10000, t * total + t + 1, (t + 1) * total);
  return add(pad(maskToBias(mask), 3, 0, config.additional_embeddings), graph.constant('causal', [1, 1, total, total], causal));
}

/** Mean and standard deviation of CLIP's image embeddings, stored with the weights and never trained. */
function clipStatistics(ctx: ModelContext, config: PriorTransformerConfig): { mean: Tensor; std: Tensor } {
  const get = (name: string, value: number): Tensor => ctx.parameters.get(name, [1, config.clip_embed_dim], 'plain', { kind: 'constant', value }, false);
  return { mean: get('clip_mean', 0), std: get('clip_std', 1) };
}

/** post_process_latents: from the space of the diffusion [N, clip_embed_dim] to CLIP's. */
export function priorPostProcess(ctx: ModelContext, config: PriorTransformerConfig, latents: Tensor): Tensor {
  const { mean, std } = clipStatistics(ctx, config);
  return add(mul(latents, std), mean);
}

/** Fresh input leaves, called as in diffusers. */
export function priorTransformerInputs({ graph }: ModelContext, config: PriorTransformerConfig, n: number, { masked = true, tokens = config.num_embeddings } = {}): PriorTransformerInputs {
  return {
    hiddenStates: graph.input('hidden_states', [n, config.embedding_dim]),
    timestep: graph.input('timestep', [n]),
    projEmbedding: graph.input('proj_embedding', [n, config.embedding_proj_dim]),
    encoderHiddenStates: tokens > 0 ? graph.input('encoder_hidden_states', [n, tokens, config.encoder_hid_proj_type ? config.embedding_dim : config.num_attention_heads * config.attention_head_dim]) : undefined,
    attentionMask: masked && tokens > 0 ? graph.input('attention_mask', [n, tokens]) : undefined,
  };
}
