/**
 * CLIP's two transformers (Radford et al. 2021), as transformers' CLIPTextModel(WithProjection) and CLIPVisionModel(WithProjection) compute them.
 * Blocks normalise first (pre-LN); queries and keys are scaled by 1/√D; text attends to what is before it only.
 */
import { BruitError } from '../engine/errors';
import type { Tensor } from '../engine/graph';
import { attention } from '../engine/ops/attention';
import { concat, slice, transpose } from '../engine/ops/copy';
import { matmul } from '../engine/ops/matmul';
import { abs, add, cast, clamp, expand, mul, scale, shift, sub, type PointwiseName } from '../engine/ops/pointwise';
import { reshape } from '../engine/ops/reshape';
import { sum } from '../engine/ops/sum';
import { showShape } from '../engine/shape';
import { ConfigReader } from './config';
import { activation, activationName, attentionBias, conv, embed, layerNorm, linear, module, ownWeight, recomputable, type ModelContext } from './layers';

interface CLIPLayersConfig {
  readonly hidden_size: number;
  readonly intermediate_size: number;
  readonly num_hidden_layers: number;
  readonly num_attention_heads: number;
  readonly hidden_act: PointwiseName;
  readonly layer_norm_eps: number;
  readonly projection_dim: number;
}

export interface CLIPTextConfig extends CLIPLayersConfig {
  readonly vocab_size: number;
  readonly max_position_embeddings: number;
  readonly eos_token_id: number;
}

export interface CLIPVisionConfig extends CLIPLayersConfig {
  readonly num_channels: number;
  readonly image_size: number;
  readonly patch_size: number;
}

function parseLayers(c: ConfigReader, hidden: number, intermediate: number, heads: number): CLIPLayersConfig {
  const config = {
    hidden_size: c.integer('hidden_size', hidden),
    intermediate_size: c.integer('intermediate_size', intermediate),
    num_hidden_layers: c.integer('num_hidden_layers', 12),
    num_attention_heads: c.integer('num_attention_heads', heads),
    hidden_act: activationName(c.string('hidden_act', 'quick_gelu')),
    layer_norm_eps: c.number('layer_norm_eps', 1e-5),
    projection_dim: c.integer('projection_dim', 512),
  };
  if (config.hidden_size % config.num_attention_heads) c.fail(`hidden_size ${config.hidden_size} does not divide into num_attention_heads = ${config.num_attention_heads}`);
  return config;
}

/** Reads the config.json of a CLIP text encoder. Entries that do not shape its forward pass are left aside: transformers writes many. */
export function parseCLIPTextConfig(json: unknown, file = 'config.json'): CLIPTextConfig {
  const c = new ConfigReader(json, file, 'CLIPTextModel');
  return {
    ...parseLayers(c, 512, 2048, 8),
    vocab_size: c.integer('vocab_size', 49408),
    max_position_embeddings: c.integer('max_position_embeddings', 77),
    eos_token_id: c.integer('eos_token_id', 49407, 0),
  };
}

/** Reads the config.json of a CLIP vision encoder, as {@link parseCLIPTextConfig} does. */
export function parseCLIPVisionConfig(json: unknown, file = 'config.json'): CLIPVisionConfig {
  const c = new ConfigReader(json, file, 'CLIPVisionModel');
  const config = { ...parseLayers(c, 768, 3072, 12), num_channels: c.integer('num_channels', 3), image_size: c.integer('image_size', 224), patch_size: c.integer('patch_size', 32) };
  if (config.patch_size > config.image_size) c.fail(`patch_size ${config.patch_size} is more than image_size ${config.image_size}`);
  return config;
}

interface EncoderMask {
  readonly causal: boolean;
  /** Added to the scores. */
  readonly bias?: Tensor | undefined;
}

/** CLIPEncoder: the input and the output of every layer, num_hidden_layers + 1 tensors [N,T,hidden_size]. */
function encoder(ctx: ModelContext, config: CLIPLayersConfig, x: Tensor, { causal, bias }: EncoderMask): Tensor[] {
  const { hidden_size: width, layer_norm_eps: eps } = config;
  const hiddenStates = [x];
  for (let i = 0; i < config.num_hidden_layers; i++) {
    x = module(ctx, `encoder.layers.${i}`, () => recomputable(ctx, () => {
      const h = layerNorm(ctx, 'layer_norm1', x, { eps });
      const attended = module(ctx, 'self_attn', () => {
        const [q, k, v] = ['q_proj', 'k_proj', 'v_proj'].map((name) => linear(ctx, name, h, width)) as [Tensor, Tensor, Tensor];
        return linear(ctx, 'out_proj', attention(q, k, v, { heads: config.num_attention_heads, causal, ...(bias && { mask: bias }) }), width);
      });
      const y = add(x, attended);
      const normed = layerNorm(ctx, 'layer_norm2', y, { eps });
      return add(y, module(ctx, 'mlp', () => linear(ctx, 'fc2', activation(linear(ctx, 'fc1', normed, config.intermediate_size), config.hidden_act), width)));
    }));
    hiddenStates.push(x);
  }
  return hiddenStates;
}

export interface CLIPTextInputs {
  /** i32 [N,T], T at most max_position_embeddings. */
  readonly inputIds: Tensor;
  /** [N,T], 1 for tokens that may be attended to and 0 for padding; all of them by default, as Stable Diffusion has it. */
  readonly attentionMask?: Tensor | undefined;
  /** Makes the embeddings of the tokens [N,T,hidden_size] from the model's table [V,hidden_size]; a look-up by default. */
  readonly embedTokens?: ((table: Tensor) => Tensor) | undefined;
}

export interface CLIPTextOutputs {
  /** After the final layer norm, [N,T,hidden_size]. */
  readonly lastHiddenState: Tensor;
  /** The embeddings and every layer's output before the final norm, [N,T,hidden_size] each: transformers' `hidden_states`. */
  readonly hiddenStates: readonly Tensor[];
  /** lastHiddenState at the end token, [N,hidden_size]. */
  readonly poolerOutput: Tensor;
  /** poolerOutput through text_projection, [N,projection_dim]; only with `projection`. */
  readonly textEmbeds?: Tensor;
  /** Adds the final layer norm of the output `clipSkip` layers before the last: diffusers' `clip_skip`; 0 is lastHiddenState. */
  skip(clipSkip: number): Tensor;
}

/** Adds CLIPTextModel, or with `projection` CLIPTextModelWithProjection, to the graph. Results that nothing reads cost nothing. */
export function clipText(ctx: ModelContext, config: CLIPTextConfig, { inputIds, attentionMask, embedTokens }: CLIPTextInputs, { projection = false }: { projection?: boolean } = {}): CLIPTextOutputs {
  const { graph } = ctx;
  const { hidden_size: width, layer_norm_eps: eps } = config;
  const [batch, tokens] = inputIds.shape as [number, number];
  if (inputIds.shape.length !== 2 || tokens > config.max_position_embeddings) {
    throw new BruitError('shape', `CLIPTextModel: input_ids ${showShape(inputIds.shape)} must be [N, T] with T at most ${config.max_position_embeddings} (max_position_embeddings of its config)`);
  }
  const finalNorm = (x: Tensor): Tensor => graph.scope('text_model', () => layerNorm(ctx, 'final_layer_norm', x, { eps }));
  const hiddenStates = graph.scope('text_model', () => {
    const x = module(ctx, 'embeddings', () => {
      const token = embed(ctx, 'token_embedding', inputIds, config.vocab_size, width, { std: 0.02, ...(embedTokens && { lookUp: embedTokens }) });
      const position = ownWeight(ctx, 'position_embedding.weight', [config.max_position_embeddings, width], { kind: 'normal', std: 0.02 });
      return cast(add(token, tokens === config.max_position_embeddings ? position : slice(position, 0, 0, tokens)), ctx.computeType ?? 'f32');
    });
    return encoder(ctx, config, x, { causal: true, bias: attentionMask && attentionBias(attentionMask) });
  });
  const lastHiddenState = finalNorm(hiddenStates[hiddenStates.length - 1]!);
  const poolerOutput = reshape(matmul(reshape(cast(endToken(inputIds, config.eos_token_id), lastHiddenState.dtype), [batch, 1, tokens]), lastHiddenState), [batch, width]);
  return {
    lastHiddenState,
    hiddenStates,
    poolerOutput,
    ...(projection && { textEmbeds: linear(ctx, 'text_projection', poolerOutput, config.projection_dim, { bias: false }) }),
    skip(clipSkip) {
      const x = hiddenStates[hiddenStates.length - 1 - clipSkip];
      if (!x) throw new BruitError('input', `clip_skip ${clipSkip} must be an integer from 0 to ${config.num_hidden_layers}, this encoder's layers`);
      return clipSkip === 0 ? lastHiddenState : finalNorm(x);
    },
  };
}

/** 0 → 1, and whole numbers of at least 1 → 0. */
const isZero = (count: Tensor): Tensor => shift(scale(clamp(count, 0, 1), -1), 1);

/**
 * The place whose state is pooled, as a row of one 1 and zeros, f32 [N,T]: that of the first end token, or the first place if there is none.
 * Configs from before transformers 4.31 say eos_token_id 2 whatever the tokenizer does; there it is the first place of the largest id.
 */
function endToken(ids: Tensor, eos: number): Tensor {
  const [n, t] = ids.shape as [number, number];
  const f = cast(ids, 'f32');
  const marked = eos === 2 ? isZero(reshape(sum(clamp(sub(reshape(f, [n, 1, t]), reshape(f, [n, t, 1])), 0, 1), [2]), [n, t])) : isZero(abs(shift(f, -eos)));
  const earlier = ids.graph.constant('earlier', [t, t], Float32Array.from({ length: t * t }, (_, i) => (Math.floor(i / t) < i % t ? 1 : 0)));
  const first = mul(marked, isZero(matmul(marked, earlier)));
  const origin = ids.graph.constant('origin', [1, t], Float32Array.from({ length: t }, (_, i) => (i === 0 ? 1 : 0)));
  return add(first, mul(origin, isZero(sum(marked, [1]))));
}

export interface CLIPVisionOutputs {
  /** Before post_layernorm, the class token first: [N, patches + 1, hidden_size]. */
  readonly lastHiddenState: Tensor;
  /** The embeddings (after pre_layrnorm) and every layer's output. */
  readonly hiddenStates: readonly Tensor[];
  /** The class token after post_layernorm, [N,hidden_size]. */
  readonly poolerOutput: Tensor;
  /** poolerOutput through visual_projection, [N,projection_dim]; only with `projection`. */
  readonly imageEmbeds?: Tensor;
}

/** Adds CLIPVisionModel, or with `projection` CLIPVisionModelWithProjection, to the graph. `pixelValues` [N,num_channels,image_size,image_size]. */
export function clipVision(ctx: ModelContext, config: CLIPVisionConfig, pixelValues: Tensor, { projection = false }: { projection?: boolean } = {}): CLIPVisionOutputs {
  const { hidden_size: width, layer_norm_eps: eps, image_size: size, patch_size: patch, num_channels: channels } = config;
  const { shape } = pixelValues;
  if (shape.length !== 4 || shape[1] !== channels || shape[2] !== size || shape[3] !== size) {
    throw new BruitError('shape', `CLIPVisionModel: pixel_values ${showShape(shape)} must be [N, ${channels}, ${size}, ${size}] (num_channels and image_size of its config): resize and normalise the image first`);
  }
  const n = shape[0]!;
  const { hiddenStates, poolerOutput } = ctx.graph.scope('vision_model', () => {
    const embedded = module(ctx, 'embeddings', () => {
      const grid = conv(ctx, 'patch_embedding', cast(transpose(pixelValues, [0, 2, 3, 1]), ctx.computeType ?? 'f32'), width, { kernel: patch, stride: patch, padding: 0, bias: false });
      const patches = grid.shape[1]! * grid.shape[2]!;
      const token = ownWeight(ctx, 'class_embedding', [width], { kind: 'normal', std: width ** -0.5 });
      const x = concat([cast(expand(reshape(token, [1, 1, width]), [n, 1, width]), grid.dtype), reshape(grid, [n, patches, width])], 1);
      return add(x, ownWeight(ctx, 'position_embedding.weight', [patches + 1, width], { kind: 'normal', std: 0.02 }));
    });
    const states = encoder(ctx, config, layerNorm(ctx, 'pre_layrnorm', embedded, { eps }), { causal: false });
    const classToken = reshape(slice(states[states.length - 1]!, 1, 0, 1), [n, width]);
    return { hiddenStates: states, poolerOutput: layerNorm(ctx, 'post_layernorm', classToken, { eps }) };
  });
  return {
    lastHiddenState: hiddenStates[hiddenStates.length - 1]!,
    hiddenStates,
    poolerOutput,
    ...(projection && { imageEmbeds: linear(ctx, 'visual_projection', poolerOutput, config.projection_dim, { bias: false }) }),
  };
}
