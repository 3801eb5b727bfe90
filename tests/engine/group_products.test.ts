import { afterAll, describe, expect, test } from 'vitest';
import { gradients } from '../../src/engine/autodiff';
import type { BufferView } from '../../src/engine/buffer_view';
import { Engine } from '../../src/engine/device';
import { Graph, type Tensor } from '../../src/engine/graph';
import { groupProducts } from '../../src/engine/group_products';
import { matmul } from '../../src/engine/ops/matmul';
import { add, mul } from '../../src/engine/ops/pointwise';
import { sum } from '../../src/engine/ops/sum';
import { fuse } from '../../src/engine/passes';
import { compile, tensorUsage } from '../../src/engine/program';
import { attentionLayer } from '../../src/model/transformer';
import { selfAttention } from '../../src/model/blocks';
import type { ModelContext } from '../../src/model/layers';
import { Parameters, WeightStore } from '../../src/model/parameters';
import { testDevice } from '../helpers/device';
import { assertClose, normal, random } from '../helpers/op_suite';

const device = await testDevice();
const engine = await Engine.create({ device });
afterAll(() => engine.destroy());

/** An attention layer and its gradients; `apart` moves the keys' weight away from its neighbours. */
async function attend(build: (ctx: ModelContext) => Tensor, apart: boolean) {
  const graph = new Graph();
  const parameters = new Parameters(graph);
  const y = build({ graph, parameters });
  const weighted = sum(mul(y, graph.input('dy', y.shape)), y.shape.map((_, i) => i));
  const store = new WeightStore(engine, parameters.specs.values());
  store.initialise(4);
  const bindings = store.bindings(parameters);
  const own: GPUBuffer[] = [];
  for (const [t, { buffer, offset }] of store.bindings(parameters)) {
    if (!apart || !t.name.endsWith('to_k.weight')) continue;
    own.push(engine.createBuffer('keys', t.bytes, tensorUsage));
    const encoder = device.createCommandEncoder();
    encoder.copyBufferToBuffer(buffer, offset, own[0]!, 0, t.bytes);
    device.queue.submit([encoder.finish()]);
    bindings.set(t, { buffer: own[0]!, offset: 0 });
  }
  const names = [...parameters.tensors.keys()];
  const grads = gradients(weighted, [...parameters.tensors.values()]);
  const program = await compile(engine, graph, { outputs: [y, ...grads], bindings, poison: true });
  const rand = random(9);
  for (const leaf of graph.leaves) if (leaf.kind === 'input') program.write(leaf, Float32Array.from({ length: leaf.bytes / 4 }, () => normal(rand)));
  program.run();
  const values = new Map<string, Float32Array>([['y', await program.read(y)]]);
  for (const [i, name] of names.entries()) values.set(name, await program.read(grads[i]!));
  const result = { values, dispatches: program.steps.length };
  program.destroy();
  store.destroy();
  own.forEach((b) => engine.destroyBuffer(b));
  return result;
}

const image = (ctx: ModelContext, channels: number) => ctx.graph.input('x', [2, 4, 4, channels]);
test.each<[string, number, (ctx: ModelContext) => Tensor]>([
  ['self-attention of pixels', 2, (ctx) => selfAttention(ctx, 'attentions.0', image(ctx, 64), { heads: 2, headDim: 32, groups: 8, eps: 1e-6 })],
  ['tokens, without biases', 2, (ctx) => attentionLayer(ctx, 'attn1', ctx.graph.input('x', [2, 24, 40]), { heads: 2, headDim: 32, bias: false })],
  ['keys and values of a text', 1, (ctx) => attentionLayer(ctx, 'attn2', ctx.graph.input('x', [2, 24, 40]), { heads: 2, headDim: 32, bias: true, context: { states: ctx.graph.input('text', [2, 6, 48]), mask: undefined } })],
])('%s: one product for its projections, the same values and gradients', async (_, saved, build) => {
  const together = await attend(build, false);
  const apart = await attend(build, true);
  // With the keys' weight apart, queries and values are no neighbours either.
  expect(apart.dispatches - together.dispatches).toBe(saved);
  expect(together.values.size).toBeGreaterThan(5);
  for (const [name, value] of together.values) assertClose(name, value, apart.values.get(name)!, 1e-6);
});

describe('what stays apart', () => {
  const buffer = {} as GPUBuffer;
  /** Two products of x by weights [8, n] at the given offsets; returns how many are left. */
  function left(n: number, offsets: readonly [number, number], build: (x: Tensor, w: Tensor, bias: Tensor) => Tensor = (x, w) => matmul(x, w), o: { limit?: number; bound?: boolean; packed?: BufferView['packed'] } = {}): number {
    const graph = new Graph();
    const x = graph.input('x', [1, 16, 8]);
    const weights = [0, 1].map((i) => graph.parameter(`w${i}`, [8, n]));
    const biases = [0, 1].map((i) => graph.parameter(`b${i}`, [n]));
    const outputs = weights.map((w, i) => build(x, w, biases[i]!));
    const bindings = new Map<Tensor, BufferView>([...weights.map((w, i) => [w, { buffer, offset: offsets[i]!, ...(o.packed && { packed: o.packed }) }] as const), ...biases.map((b, i) => [b, { buffer, offset: 65536 + i * 256 }] as const)]);
    if (o.bound) bindings.set(outputs[1]!, { buffer: {} as GPUBuffer, offset: 0 });
    const nodes = fuse(graph.nodes, new Set(outputs), { maxStorageBuffers: 8 });
    const grouped = groupProducts(nodes, bindings, { ...engine.profile.limits, minStorageBufferOffsetAlignment: 256, maxStorageBufferBindingSize: o.limit ?? 2 ** 27 });
    return grouped.nodes.filter((node) => !node.op.view).length;
  }

  test('neighbours are one', () => {
    expect(left(64, [0, 2048])).toBe(1);
    expect(left(64, [256, 2304], (x, w, b) => add(matmul(x, w), b))).toBe(1);
  });
  test('weights that do not touch', () => expect(left(64, [0, 2304])).toBe(2));
  test('weights in the wrong order', () => expect(left(64, [2048, 0])).toBe(2));
  test('biases that do not touch', () => expect(left(32, [0, 1024], (x, w, b) => add(matmul(x, w), b))).toBe(2));
  test('results that would not begin at a multiple of the alignment', () => expect(left(5, [0, 160])).toBe(2));
  test('more than may be bound at once', () => expect(left(64, [0, 2048], undefined, { limit: 4096 })).toBe(2));
  test("a result in the caller's memory", () => expect(left(64, [0, 2048], undefined, { bound: true })).toBe(2));
  test('packed weights', () => expect(left(64, [0, 2048], undefined, { packed: { format: 'f16' } as unknown as NonNullable<BufferView['packed']> })).toBe(2));
  test('a transposed weight', () => expect(left(8, [0, 256], (x, w) => matmul(x, w, { transposeB: true }))).toBe(2));
});
