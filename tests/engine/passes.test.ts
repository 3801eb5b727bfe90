import { expect, test } from 'vitest';
import { Graph } from '../../src/engine/graph';
import { add, cast, scale } from '../../src/engine/ops/pointwise';
import { reshape } from '../../src/engine/ops/reshape';
import { zero } from '../../src/engine/ops/state';
import { fuse } from '../../src/engine/passes';

test.each(['itself', 'through a view'])('a state read %s is read before it is overwritten, not fused into what comes later', (how) => {
  const graph = new Graph();
  const state = graph.state('state', [4]);
  const doubled = scale(how === 'itself' ? state : reshape(state, [2, 2]), 2);
  zero(state);
  const sum = add(doubled, graph.input('x', doubled.shape));
  const names = fuse(graph.nodes, new Set([sum]), { maxStorageBuffers: 8 }).filter((n) => !n.op.view).map((n) => n.op.name);
  expect(names).toEqual(['scale', 'zero', 'add']);
});

test('a store as an integer is kept: it drops the fraction', () => {
  const graph = new Graph();
  const rounded = cast(cast(scale(graph.input('x', [4]), 1.5), 'i32'), 'f32');
  const names = fuse(graph.nodes, new Set([rounded]), { maxStorageBuffers: 8 }).map((n) => n.op.name);
  expect(names).toEqual(['fused_pointwise', 'cast']);
});
