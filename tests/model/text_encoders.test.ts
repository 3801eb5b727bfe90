import { afterAll, describe, expect, test } from 'vitest';
import { Engine } from '../../src/engine/device';
import { erfRef } from '../../src/engine/ops/pointwise';
import { clipText, clipVision, parseCLIPTextConfig, parseCLIPVisionConfig } from '../../src/model/clip';
import { parseT5Config, relativePositionBuckets, t5Encoder, type T5Config } from '../../src/model/t5';
import { testDevice } from '../helpers/device';
import { runRandomModel } from '../helpers/model';
import { assertClose } from '../helpers/op_suite';

const engine = await Engine.create({ device: await testDevice() });
afterAll(() => engine.destroy());

describe('CLIP text', () => {
  const small = { hidden_size: 12, intermediate_size: 20, num_hidden_layers: 2, num_attention_heads: 3, vocab_size: 30, max_position_embeddings: 9, projection_dim: 5, hidden_act: 'gelu' };

  test.each<[string, number, number[], number]>([
    ['the first end token', 29, [4, 29, 3, 29, 29, 1], 1],
    ['in the last place', 7, [29, 1, 2, 3, 4, 7], 5],
    ['none: the first place', 7, [5, 1, 2, 3, 4, 6], 0],
    ['the first place of the largest id where the config says 2', 2, [4, 28, 2, 28, 3, 1], 1],
    ['first of all', 2, [28, 28, 28, 28, 28, 28], 0],
  ])('pooled at %s', async (_, eos, ids, place) => {
    const config = parseCLIPTextConfig({ ...small, eos_token_id: eos });
    const other = [1, 2, eos === 2 ? 29 : eos, 3, 4, 5];
    const { values } = await runRandomModel(engine, (ctx) => {
      const { lastHiddenState, poolerOutput } = clipText(ctx, config, { inputIds: ctx.graph.input('ids', [2, 6], 'i32') });
      return { lastHiddenState, poolerOutput };
    }, { ids: Int32Array.from([...ids, ...other]) });
    expect([...values.poolerOutput]).toEqual([...values.lastHiddenState.subarray(12 * place, 12 * place + 12), ...values.lastHiddenState.subarray(12 * 8, 12 * 9)]);
  });

  test('clip_skip normalises an earlier layer, 0 is the last', async () => {
    const config = parseCLIPTextConfig(small);
    const { values, weights } = await runRandomModel(engine, (ctx) => {
      const clip = clipText(ctx, config, { inputIds: ctx.graph.input('ids', [1, 4], 'i32') });
      expect(() => clip.skip(3)).toThrow(/clip_skip 3 must be an integer from 0 to 2/);
      return { skipped: clip.skip(1), last: clip.skip(0), lastHiddenState: clip.lastHiddenState, hidden: clip.hiddenStates[1]! };
    }, { ids: Int32Array.of(1, 2, 3, 4) });
    expect(values.last).toEqual(values.lastHiddenState);
    const [gamma, beta] = ['weight', 'bias'].map((name) => weights.get(`text_model.final_layer_norm.${name}`)!) as [Float32Array, Float32Array];
    const expected = [0, 1, 2, 3].flatMap((t) => layerNorm([...values.hidden.subarray(12 * t, 12 * t + 12)], gamma, beta));
    assertClose('skip', values.skipped, expected, 1e-5);
  });

  test('a masked token changes nothing behind it, an unmasked one does', async () => {
    const config = parseCLIPTextConfig(small);
    const states = async (first: number, masked: number) =>
      (await runRandomModel(engine, (ctx) => ({ states: clipText(ctx, config, { inputIds: ctx.graph.input('ids', [1, 5], 'i32'), attentionMask: ctx.graph.input('mask', [1, 5], 'i32') }).lastHiddenState }), {
        ids: Int32Array.of(first, 3, 4, 5, 6),
        mask: Int32Array.of(1 - masked, 1, 1, 1, 1),
      })).values.states.slice(12);
    expect(await states(1, 1)).toEqual(await states(9, 1));
    expect(await states(1, 0)).not.toEqual(await states(9, 0));
  });

  test('tokens beyond the position embedding are refused by name', async () => {
    const config = parseCLIPTextConfig(small);
    await expect(runRandomModel(engine, (ctx) => ({ y: clipText(ctx, config, { inputIds: ctx.graph.input('ids', [1, 10], 'i32') }).lastHiddenState }), {})).rejects.toThrow(/input_ids \[1,10\] must be \[N, T\] with T at most 9/);
    expect(() => parseCLIPTextConfig({ ...small, num_attention_heads: 5 }, 'text/config.json')).toThrow(/text\/config\.json: hidden_size 12 does not divide into num_attention_heads = 5/);
    expect(() => parseCLIPTextConfig({ ...small, hidden_act: 'gelo' })).toThrow(/"gelo" is unknown/);
  });
});

test('CLIP vision refuses images of another size', async () => {
  const config = parseCLIPVisionConfig({ image_size: 8, patch_size: 4, hidden_size: 8, num_attention_heads: 2, num_hidden_layers: 1 });
  await expect(runRandomModel(engine, (ctx) => ({ y: clipVision(ctx, config, ctx.graph.input('x', [1, 3, 9, 8])).poolerOutput }), {})).rejects.toThrow(/pixel_values \[1,3,9,8\] must be \[N, 3, 8, 8\]/);
});

describe('T5', () => {
  const small = { vocab_size: 21, d_model: 10, d_kv: 3, d_ff: 14, num_layers: 3, num_heads: 4, relative_attention_num_buckets: 8, relative_attention_max_distance: 20 };

  test.each<[string, object]>([
    ['v1.0, ReLU', { feed_forward_proj: 'relu' }],
    ['v1.1, gated GELU (tanh)', { feed_forward_proj: 'gated-gelu' }],
    ['gated, exact GELU', { feed_forward_proj: 'gated-gelu', dense_act_fn: 'gelu' }],
    ['one gate function, named outright', { feed_forward_proj: 'relu', is_gated_act: true, dense_act_fn: 'silu' }],
  ])('%s agrees with a plain float64 reference, masked and not', async (_, own) => {
    const config = parseT5Config({ ...small, ...own });
    const [n, tokens] = [2, 37];
    const ids = Int32Array.from({ length: n * tokens }, (__, i) => (i * 7 + Math.floor(i / 5)) % 21);
    const mask = Int32Array.from({ length: n * tokens }, (__, i) => (i % tokens < (i < tokens ? 37 : 11) ? 1 : 0));
    const { values, weights } = await runRandomModel(engine, (ctx) => {
      const inputIds = ctx.graph.input('ids', [n, tokens], 'i32');
      return { masked: t5Encoder(ctx, config, { inputIds, attentionMask: ctx.graph.input('mask', [n, tokens], 'i32') }).lastHiddenState, plain: t5Encoder(ctx, config, { inputIds }).lastHiddenState };
    }, { ids, mask });
    for (const [name, used] of [['masked', mask], ['plain', mask.map(() => 1)]] as const) {
      const expected = [0, 1].flatMap((b) => t5Reference(config, weights, [...ids.subarray(b * tokens, (b + 1) * tokens)], [...used.subarray(b * tokens, (b + 1) * tokens)]));
      assertClose(name, values[name], expected, 2e-5);
    }
  });

  test('buckets: halves by direction, single distances, then powers up to the largest', () => {
    const tokens = 300;
    const buckets = relativePositionBuckets(tokens, 32, 128);
    const at = (relative: number) => buckets[150 * tokens + 150 + relative];
    expect([0, -1, -7, -8, -11, -12, -15, -16, -22, -23, -31, -32, -64, -90, -91, -128, -150].map(at)).toEqual([0, 1, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 14, 14, 15, 15, 15]);
    expect([1, 7, 8, 16, 149].map(at)).toEqual([17, 23, 24, 26, 31]);
  });

  test('an unknown feed-forward layer is refused', () => {
    expect(() => parseT5Config({ ...small, feed_forward_proj: 'gated-gelu-twice' }, 't5/config.json')).toThrow(/t5\/config\.json: "feed_forward_proj" is "gated-gelu-twice"/);
    expect(() => parseT5Config({ ...small, feed_forward_proj: 'gated-relo' })).toThrow(/"relo" is unknown/);
  });
});

const layerNorm = (x: readonly number[], gamma: Float32Array, beta: Float32Array): number[] => {
  const mean = x.reduce((a, b) => a + b, 0) / x.length;
  const variance = x.reduce((a, b) => a + (b - mean) ** 2, 0) / x.length;
  return x.map((v, i) => ((v - mean) / Math.sqrt(variance + 1e-5)) * gamma[i]! + beta[i]!);
};

/** T5's encoder on one sequence, row by row. */
function t5Reference(c: T5Config, weights: ReadonlyMap<string, Float32Array>, ids: readonly number[], mask: readonly number[]): number[] {
  const w = (name: string) => weights.get(name)!;
  const project = (x: readonly number[], name: string, out: number): number[] => Array.from({ length: out }, (_, o) => x.reduce((s, v, i) => s + v * w(name)[o * x.length + i]!, 0));
  const norm = (x: readonly number[], name: string): number[] => {
    const rms = Math.sqrt(x.reduce((s, v) => s + v * v, 0) / x.length + c.layer_norm_epsilon);
    return x.map((v, i) => (v / rms) * w(name)[i]!);
  };
  const act: Record<string, (x: number) => number> = {
    relu: (x) => Math.max(x, 0),
    silu: (x) => x / (1 + Math.exp(-x)),
    gelu: (x) => 0.5 * x * (1 + erfRef(x / Math.SQRT2)),
    gelu_tanh: (x) => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3))),
  };
  const bucket = (query: number, key: number): number => {
    const half = c.relative_attention_num_buckets / 2;
    const distance = Math.abs(key - query);
    const log = Math.floor((Math.log(distance / (half / 2)) / Math.log(c.relative_attention_max_distance / (half / 2))) * (half / 2) + 1e-6);
    return (key > query ? half : 0) + (distance < half / 2 ? distance : Math.min(half / 2 + log, half - 1));
  };
  const inner = c.num_heads * c.d_kv;
  let x = ids.map((id) => [...w('shared.weight').subarray(id * c.d_model, (id + 1) * c.d_model)]);
  for (let l = 0; l < c.num_layers; l++) {
    const [attention, dense] = [`encoder.block.${l}.layer.0`, `encoder.block.${l}.layer.1`];
    const h = x.map((row) => norm(row, `${attention}.layer_norm.weight`));
    const [q, k, v] = ['q', 'k', 'v'].map((name) => h.map((row) => project(row, `${attention}.SelfAttention.${name}.weight`, inner))) as [number[][], number[][], number[][]];
    const mixed = q.map((query, t) => {
      const out = new Array<number>(inner).fill(0);
      for (let head = 0; head < c.num_heads; head++) {
        const part = (row: readonly number[]) => row.slice(head * c.d_kv, (head + 1) * c.d_kv);
        const scores = k.map((key, j) => (mask[j] ? part(key).reduce((s, value, d) => s + value * part(query)[d]!, 0) + w('encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight')[bucket(t, j) * c.num_heads + head]! : -Infinity));
        const top = Math.max(...scores);
        const p = scores.map((s) => Math.exp(s - top));
        const total = p.reduce((a, b) => a + b, 0);
        v.forEach((value, j) => part(value).forEach((each, d) => (out[head * c.d_kv + d]! += (p[j]! / total) * each)));
      }
      return out;
    });
    x = x.map((row, t) => project(mixed[t]!, `${attention}.SelfAttention.o.weight`, c.d_model).map((y, i) => y + row[i]!));
    x = x.map((row) => {
      const n = norm(row, `${dense}.layer_norm.weight`);
      const up = (name: string) => project(n, `${dense}.DenseReluDense.${name}.weight`, c.d_ff);
      const f = act[c.dense_act_fn]!;
      const gate = c.is_gated_act ? up('wi_1') : undefined;
      const hidden = gate ? up('wi_0').map((y, i) => f(y) * gate[i]!) : up('wi').map(f);
      return project(hidden, `${dense}.DenseReluDense.wo.weight`, c.d_model).map((y, i) => y + row[i]!);
    });
  }
  return x.flatMap((row) => norm(row, 'encoder.final_layer_norm.weight'));
}
