/** Prompts to the states of a CLIP text encoder, in one window or several, with or without weights of words. */
import { check } from '../engine/errors';
import type { Tensor } from '../engine/graph';
import { reshape } from '../engine/ops/reshape';
import type { CLIPTextConfig, CLIPTextOutputs } from '../model/clip';
import { clipText } from '../model/clip';
import { encodeLongPrompts, weightTokens } from '../text/prompt';
import type { TokenBatch, Tokenizer } from '../text/tokenizer';
import type { Component, LoadedLora } from './component';

/** How prompts are read; what diffusers has no name for is in camel case. */
export interface PromptOptions {
  /** Layers of the text encoder that are left out at its end, for prompts but not for negative ones. */
  readonly clip_skip?: number | undefined;
  /** Read `(word:1.3)` and its kin as AUTOMATIC1111's web UI does. Prompts may then be of any length. */
  readonly promptWeighting?: 'a1111' | undefined;
  /** Prompts longer than the encoder's window become several windows; otherwise they are cut, as diffusers does. */
  readonly longPrompts?: boolean | undefined;
}

export interface PromptEncoder {
  readonly encoder: Component<CLIPTextConfig>;
  readonly tokenizer: Tokenizer;
}

export interface EncodedPrompts {
  readonly inputIds: Int32Array;
  /** [N, tokens, width]: `clip_skip` layers before the last. */
  readonly embeds: Float32Array;
  /** The same of the last layer. */
  readonly unskipped: Float32Array;
  /** Through the encoder's projection, [N, projection_dim]; only where it was asked for. */
  readonly pooled?: Float32Array;
  /** Of the states. */
  readonly shape: readonly [number, number, number];
}

export interface EncodeOptions extends PromptOptions {
  /** What of the encoder is wanted, `skip` layers before the last: [N, T, width]. */
  readonly states: (out: CLIPTextOutputs, skip: number) => Tensor;
  readonly projection?: boolean;
  readonly loras?: readonly LoadedLora[];
}

/** Encodes all prompts at once: they get as many windows as the longest of them needs. */
export async function encodePrompts({ encoder, tokenizer }: PromptEncoder, prompts: readonly string[], options: EncodeOptions): Promise<EncodedPrompts> {
  const { clip_skip: skip = 0, promptWeighting, longPrompts = false, states, projection = false, loras = [] } = options;
  const { config, json } = encoder;
  check(Number.isInteger(skip) && skip >= 0, 'input', () => `clip_skip ${skip} must be a whole number of at least 0`);
  const window = Math.min(tokenizer.modelMaxLength, config.max_position_embeddings);
  const weighted = promptWeighting === 'a1111';
  const several = weighted || longPrompts ? encodeLongPrompts(tokenizer, prompts, { window, weights: weighted }) : undefined;
  const tokens: TokenBatch = several ?? tokenizer.batch(prompts, window);
  const chunks = several?.chunks ?? 1;
  const [n, length] = [prompts.length, chunks * window];
  const masked = json.use_attention_mask === true;
  const values = await encoder.run((ctx, inputs) => {
    const out = clipText(ctx, config, { inputIds: inputs.add('input_ids', tokens.shape, tokens.inputIds), ...(masked && { attentionMask: inputs.add('attention_mask', tokens.shape, tokens.attentionMask) }) }, { projection });
    const weights = weighted ? inputs.add('token_weights', [n, length, 1], several!.tokenWeights) : undefined;
    const joined = (t: Tensor): Tensor => {
      const rows = chunks === 1 ? t : reshape(t, [n, length, config.hidden_size]);
      return weights ? weightTokens(rows, weights) : rows;
    };
    return { embeds: joined(states(out, skip)), ...(skip && { unskipped: joined(states(out, 0)) }), ...(projection && { pooled: out.textEmbeds! }) } as Record<'embeds' | 'unskipped' | 'pooled', Tensor>;
  }, loras);
  const pooled = projection ? firstWindows(values.pooled, n, chunks, config.projection_dim) : undefined;
  return { inputIds: tokens.inputIds, embeds: values.embeds, unskipped: skip ? values.unskipped : values.embeds, ...(pooled && { pooled }), shape: [n, length, config.hidden_size] };
}

/** Of [N·chunks, width] the row of each prompt's first window. */
function firstWindows(rows: Float32Array, n: number, chunks: number, width: number): Float32Array {
  if (chunks === 1) return rows;
  const out = new Float32Array(n * width);
  for (let i = 0; i < n; i++) out.set(rows.subarray(i * chunks * width, (i * chunks + 1) * width), i * width);
  return out;
}

/** Rows of `a`, then those of `b`. */
export function joinRows(a: Float32Array, b: Float32Array): Float32Array {
  const out = new Float32Array(a.length + b.length);
  out.set(a);
  out.set(b, a.length);
  return out;
}
