import { afterAll, describe, expect, test } from 'vitest';
import { Engine } from '../../src/engine/device';
import { Graph } from '../../src/engine/graph';
import { compile } from '../../src/engine/program';
import { directory } from '../../src/node/directory';
import { encodeLongPrompts, parseWeightedPrompt, weightTokens } from '../../src/text/prompt';
import { loadTokenizer } from '../../src/text/tokenizer';
import { testDevice } from '../helpers/device';
import { goldenPath } from '../helpers/golden';
import { assertClose } from '../helpers/op_suite';

const engine = await Engine.create({ device: await testDevice() });
afterAll(() => engine.destroy());

test.each<[string, [string, number][]]>([
  ['a plain prompt', [['a plain prompt', 1]]],
  ['', [['', 1]]],
  ['a (red) fox', [['a ', 1], ['red', 1.1], [' fox', 1]]],
  ['a (red:1.3) fox', [['a ', 1], ['red', 1.3], [' fox', 1]]],
  ['((very)) [little]', [['very', 1.1 * 1.1], [' ', 1], ['little', 1 / 1.1]]],
  ['(a (small:0.5) fox:1.5)', [['a ', 1.5], ['small', 0.75], [' fox', 1.5]]],
  ['\\(literal\\) [a: b]', [['(literal) ', 1], ['a: b', 1 / 1.1]]],
  ['(unclosed fox', [['unclosed fox', 1.1]]],
  ['smile :) and ) alone', [['smile :) and ) alone', 1]]],
  ['(x: .25) [y:2)', [['x', 0.25], [' ', 1], ['y:2)', 1 / 1.1]]],
])('%s', (prompt, expected) => {
  const parts = parseWeightedPrompt(prompt);
  expect(parts.map((p) => p.text)).toEqual(expected.map(([text]) => text));
  parts.forEach((p, i) => expect(p.weight).toBeCloseTo(expected[i]![1], 12));
});

describe('long prompts', async () => {
  const clip = await loadTokenizer(directory(goldenPath('tokenizers')), 'clip');

  test('come in windows between special tokens, as many as the longest needs, weights at their tokens', () => {
    const long = 'under the tree (under the tree:1.5) a small red fox';
    const ids = ['under the tree', 'under the tree', 'a small red fox'].flatMap((text) => clip.encode(text));
    const { shape, chunks, inputIds, attentionMask, tokenWeights } = encodeLongPrompts(clip, [long, 'fox'], { window: 10, weights: true });
    expect([chunks, ...shape]).toEqual([Math.ceil(ids.length / 8), 2 * chunks, 10]);
    const rows = Array.from({ length: 2 * chunks }, (_, i) => [...inputIds.subarray(10 * i, 10 * i + 10)]);
    expect(rows.every((row) => row[0] === 632 && row.includes(633))).toBe(true);
    expect(rows.slice(0, chunks).flatMap((row) => row.slice(1, row.indexOf(633)))).toEqual(ids);
    expect(rows.slice(chunks)).toEqual([[632, ...clip.encode('fox'), ...Array<number>(9 - clip.encode('fox').length).fill(633)], ...Array.from({ length: chunks - 1 }, () => [632, ...Array<number>(9).fill(633)])]);
    const weighted = [...tokenWeights].flatMap((w, i) => (w === 1 ? [] : [[w, inputIds[i]]]));
    expect(weighted).toEqual(clip.encode('under the tree').map((id) => [1.5, id]));
    expect(attentionMask.subarray(10 * (chunks - 1), 10 * chunks).reduce((a, b) => a + b, 0)).toBe(2 + ids.length - 8 * (chunks - 1));
  });

  test('without the option brackets are text, and a short prompt is one window', () => {
    const { chunks, inputIds, tokenWeights } = encodeLongPrompts(clip, ['(fox:2)']);
    expect(chunks).toBe(1);
    expect([...inputIds]).toEqual([...clip.batch(['(fox:2)']).inputIds]);
    expect(tokenWeights.every((w) => w === 1)).toBe(true);
    expect(() => encodeLongPrompts(clip, [''], { window: 2 })).toThrow(/window 2 must be an integer of at least 3/);
  });
});

test('weights multiply states and keep the mean of each prompt', async () => {
  const graph = new Graph();
  const [states, weights] = [graph.input('states', [2, 3, 4]), graph.input('weights', [2, 3, 1])];
  const out = weightTokens(states, weights);
  const program = await compile(engine, graph, { outputs: [out] });
  const z = Float32Array.from({ length: 24 }, (_, i) => Math.sin(i) + 0.4);
  const w = Float32Array.of(1, 1.3, 0.5, 1, 1, 1);
  program.write(states, z);
  program.write(weights, w);
  program.run();
  const scaled = z.map((v, i) => v * w[Math.floor(i / 4)]!);
  const mean = (x: Float32Array, b: number) => x.subarray(12 * b, 12 * b + 12).reduce((s, v) => s + v, 0) / 12;
  assertClose('states', await program.read(out), scaled.map((v, i) => (v * mean(z, Math.floor(i / 12))) / mean(scaled, Math.floor(i / 12))), 1e-6);
  program.destroy();
});
