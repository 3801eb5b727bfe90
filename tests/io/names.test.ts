import { expect, test } from 'vitest';
import { renameDeprecatedAttention } from '../../src/io/names';
import { golden, openBytes } from './helpers';

test.each([
  ['mid_block.attentions.0.query.weight', 'mid_block.attentions.0.to_q.weight'],
  ['down_blocks.1.attentions.12.key.bias', 'down_blocks.1.attentions.12.to_k.bias'],
  ['decoder.mid_block.attentions.0.value.weight', 'decoder.mid_block.attentions.0.to_v.weight'],
  ['up_blocks.0.attentions.0.proj_attn.bias', 'up_blocks.0.attentions.0.to_out.0.bias'],
  ['attentions.0.query.weight', 'attentions.0.to_q.weight'],
])('%s becomes %s', (old, now) => expect(renameDeprecatedAttention(old)).toBe(now));

test.each([
  'mid_block.attentions.0.group_norm.weight',
  'mid_block.attentions.0.to_q.weight',
  'mid_block.attentions.0.query_norm.weight',
  'mid_block.attentions.0.transformer_blocks.0.attn1.query.weight',
  'my_attentions.0.query.weight',
  'encoder.layer.0.attention.self.query.weight',
  'transformer.key.weight',
  'mid_block.attentions.0.query.scale',
  'query.weight',
])('%s stays', (name) => expect(renameDeprecatedAttention(name)).toBe(name));

test('unet2d_old_names gets the names that half_weights, of the same structure, has', async () => {
  const old = await openBytes(golden('unet2d_old_names/diffusion_pytorch_model.safetensors'));
  const now = await openBytes(golden('half_weights/diffusion_pytorch_model.fp16.safetensors'));
  expect([...old.tensors.keys()].filter((name) => now.tensors.has(name)).length).toBeLessThan(144);
  expect([...old.tensors.keys()].map(renameDeprecatedAttention).sort()).toEqual([...now.tensors.keys()].sort());
});
