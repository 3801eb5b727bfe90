/**
 * The encoder of T5 (Raffel et al. 2020) as transformers' T5EncoderModel computes it: v1.0 (ReLU) and v1.1 (gated GELU, Shazeer 2020).
 * RMS norms without bias before each layer; scores are not divided by √D; the relative position bias of block 0 serves all blocks.
 */
import { BruitError } from '../engine/errors';
import type { Tensor } from '../engine/graph';
import { attention } from '../engine/ops/attention';
import { transpose } from '../engine/ops/copy';
import { add, mul, type PointwiseName } from '../engine/ops/pointwise';
import { reshape } from '../engine/ops/reshape';
import { rmsNorm } from '../engine/ops/rms_norm';
import { showShape } from '../engine/shape';
import { ConfigReader } from './config';
import { activation, activationName, attentionBias, embed, linear, module, ownWeight, type ModelContext } from './layers';

export interface T5Config {
  readonly vocab_size: number;
  readonly d_model: number;
  readonly d_kv: number;
  readonly d_ff: number;
  readonly num_layers: number;
  readonly num_heads: number;
  readonly relative_attention_num_buckets: number;
  readonly relative_attention_max_distance: number;
  readonly layer_norm_epsilon: number;
  readonly is_gated_act: boolean;
  readonly dense_act_fn: PointwiseName;
}

/** Reads the config.json of a T5 encoder. Entries that do not shape its forward pass are left aside: transformers writes many. */
export function parseT5Config(json: unknown, file = 'config.json'): T5Config {
  const c: ConfigReader = new ConfigReader(json, file, 'T5EncoderModel');
  const projection = c.string('feed_forward_proj', 'relu');
  const match = /^(gated-)?([^-]+)$/.exec(projection);
  if (!match) c.fail(`"feed_forward_proj" is ${JSON.stringify(projection)}, but must be an activation (relu) or gated-ACTIVATION (gated-gelu)`);
  const config: T5Config = {
    vocab_size: c.integer('vocab_size', 32128),
    d_model: c.integer('d_model', 512),
    d_kv: c.integer('d_kv', 64),
    d_ff: c.integer('d_ff', 2048),
    num_layers: c.integer('num_layers', 6),
    num_heads: c.integer('num_heads', 8),
    relative_attention_num_buckets: c.integer('relative_attention_num_buckets', 32),
    relative_attention_max_distance: c.integer('relative_attention_max_distance', 128),
    layer_norm_epsilon: c.number('layer_norm_epsilon', 1e-6),
    is_gated_act: c.boolean('is_gated_act', match[1] !== undefined),
    // "gated-gelu" has always meant the tanh form.
    dense_act_fn: activationName(c.string('dense_act_fn', projection === 'gated-gelu' ? 'gelu_new' : match[2]!)),
  };
  const { relative_attention_num_buckets: buckets, relative_attention_max_distance: distance } = config;
  if (buckets % 4 || distance <= buckets / 4) c.fail(`relative_attention_num_buckets ${buckets} must be a multiple of 4, and relative_attention_max_distance ${distance} more than a quarter of it`);
  return config;
}

/**
 * Bucket of the distance from query i to key j, row-major [T,T]: half of the buckets for keys behind the query, half for keys before it;
 * of each half, the first half for single distances and the rest for logarithmically growing ranges up to `maxDistance`.
 */
export function relativePositionBuckets(tokens: number, buckets: number, maxDistance: number): Int32Array {
  const half = buckets / 2;
  const exact = half / 2;
  return Int32Array.from({ length: tokens * tokens }, (_, at) => {
    const relative = (at % tokens) - Math.floor(at / tokens);
    const distance = Math.abs(relative);
    // In float32 as PyTorch has it: at powers of two the logarithm is on the edge between two buckets.
    const far = exact + Math.floor(f32(f32(f32(Math.log(f32(distance / exact))) / f32(Math.log(maxDistance / exact))) * (half - exact)));
    return (relative > 0 ? half : 0) + (distance < exact ? distance : Math.min(far, half - 1));
  });
}
const f32 = Math.fround;

export interface T5Inputs {
  /** i32 [N,T]. */
  readonly inputIds: Tensor;
  /** [N,T], 1 for tokens that may be attended to and 0 for padding; all of them by default. */
  readonly attentionMask?: Tensor | undefined;
}

export interface T5Outputs {
  /** After the final norm, [N,T,d_model]. */
  readonly lastHiddenState: Tensor;
  /** What every block adds to its scores, before any mask: [1,num_heads,T,T]. */
  readonly positionBias: Tensor;
}

/** Adds T5EncoderModel to the graph. Activations are f32 whatever the context says: those of trained encoders exceed f16. */
export function t5Encoder(ctx: ModelContext, config: T5Config, { inputIds, attentionMask }: T5Inputs): T5Outputs {
  const { graph } = ctx;
  const { d_model: width, num_heads: heads, layer_norm_epsilon: eps, dense_act_fn: act } = config;
  if (inputIds.shape.length !== 2) throw new BruitError('shape', `T5EncoderModel: input_ids ${showShape(inputIds.shape)} must be [N, T]`);
  const tokens = inputIds.shape[1]!;
  const plain = { bias: false };
  const norm = (x: Tensor): Tensor => module(ctx, 'layer_norm', () => rmsNorm(x, ownWeight(ctx, 'weight', [width], { kind: 'constant', value: 1 }), { eps }));

  const positionBias = graph.scope('encoder.block.0.layer.0.SelfAttention', () => {
    const { relative_attention_num_buckets: buckets, relative_attention_max_distance: distance } = config;
    const ids = graph.constant('relative_position_buckets', [tokens, tokens], relativePositionBuckets(tokens, buckets, distance));
    return reshape(transpose(embed(ctx, 'relative_attention_bias', ids, buckets, heads), [2, 0, 1]), [1, heads, tokens, tokens]);
  });
  const mask = attentionMask ? add(positionBias, attentionBias(attentionMask)) : positionBias;

  let x = embed(ctx, 'shared', inputIds, config.vocab_size, width);
  for (let i = 0; i < config.num_layers; i++) {
    x = module(ctx, `encoder.block.${i}`, () => {
      const attended = module(ctx, 'layer.0', () => {
        const h = norm(x);
        return add(x, module(ctx, 'SelfAttention', () => {
          const [q, k, v] = ['q', 'k', 'v'].map((name) => linear(ctx, name, h, heads * config.d_kv, plain)) as [Tensor, Tensor, Tensor];
          return linear(ctx, 'o', attention(q, k, v, { heads, scale: 1, mask }), width, plain);
        }));
      });
      return module(ctx, 'layer.1', () => {
        const h = norm(attended);
        return add(attended, module(ctx, 'DenseReluDense', () => {
          const hidden = (name: string): Tensor => linear(ctx, name, h, config.d_ff, plain);
          return linear(ctx, 'wo', config.is_gated_act ? mul(activation(hidden('wi_0'), act), hidden('wi_1')) : activation(hidden('wi'), act), width, plain);
        }));
      });
    });
  }
  const lastHiddenState = graph.scope('encoder', () => module(ctx, 'final_layer_norm', () => rmsNorm(x, ownWeight(ctx, 'weight', [width], { kind: 'constant', value: 1 }), { eps })));
  return { lastHiddenState, positionBias };
}
