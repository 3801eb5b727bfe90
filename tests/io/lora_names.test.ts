import { describe, expect, test } from 'vitest';
import { loraNameParser } from '../../src/io/lora_names';

const attention = 'down_blocks.1.attentions.0.transformer_blocks.0.attn1';
const unet = loraNameParser(
  'unet',
  [...['to_q', 'to_k', 'to_v', 'to_out.0'].map((l) => `${attention}.${l}`), 'conv_in', 'down_blocks.0.downsamplers.0.conv', 'down_blocks.1.resnets.1.conv2', 'mid_block.attentions.0.proj_in', 'mid_block.resnets.1.time_emb_proj', 'up_blocks.0.upsamplers.0.conv', 'up_blocks.2.resnets.0.conv_shortcut', 'time_embedding.linear_1'],
  2,
);
const text = loraNameParser('text_encoder', ['text_model.encoder.layers.0.self_attn.q_proj', 'text_model.encoder.layers.0.self_attn.out_proj', 'text_model.encoder.layers.0.mlp.fc1'], 2);

describe('LoRA names', () => {
  test.each([
    [`unet.${attention}.processor.to_q_lora.down.weight`, `${attention}.to_q`, 'down'],
    [`unet.${attention}.processor.to_out_lora.up.weight`, `${attention}.to_out.0`, 'up'],
    // load_attn_procs' files are for a U-Net alone.
    [`${attention}.processor.to_v_lora.up.weight`, `${attention}.to_v`, 'up'],
    [`unet.${attention}.to_k.lora.down.weight`, `${attention}.to_k`, 'down'],
    [`unet.${attention}.to_out.0.lora_A.weight`, `${attention}.to_out.0`, 'down'],
    [`base_model.model.${attention}.to_q.lora_B.default.weight`, `${attention}.to_q`, 'up'],
    [`unet.${attention}.to_q.alpha`, `${attention}.to_q`, 'alpha'],
    ['lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0.lora_down.weight', `${attention}.to_out.0`, 'down'],
    ['lora_unet_conv_in.alpha', 'conv_in', 'alpha'],
    // The original code's blocks, as kohya names SDXL's.
    ['lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.lora_up.weight', `${attention}.to_q`, 'up'],
    ['lora_unet_input_blocks_0_0.lora_up.weight', 'conv_in', 'up'],
    ['lora_unet_input_blocks_3_0_op.lora_up.weight', 'down_blocks.0.downsamplers.0.conv', 'up'],
    ['lora_unet_input_blocks_5_0_out_layers_3.lora_down.weight', 'down_blocks.1.resnets.1.conv2', 'down'],
    ['lora_unet_middle_block_1_proj_in.alpha', 'mid_block.attentions.0.proj_in', 'alpha'],
    ['lora_unet_middle_block_2_emb_layers_1.lora_down.weight', 'mid_block.resnets.1.time_emb_proj', 'down'],
    ['lora_unet_output_blocks_2_2_conv.lora_down.weight', 'up_blocks.0.upsamplers.0.conv', 'down'],
    ['lora_unet_output_blocks_6_0_skip_connection.lora_down.weight', 'up_blocks.2.resnets.0.conv_shortcut', 'down'],
    ['lora_unet_time_embed_0.lora_down.weight', 'time_embedding.linear_1', 'down'],
  ])('%s', (name, path, part) => {
    expect(unet(name)).toEqual({ path, part });
    expect(text(name === `${attention}.processor.to_v_lora.up.weight` || name.startsWith('base_model') ? `unet.${name}` : name)).toBe('other component');
  });

  test.each([
    ['text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora.down.weight', 'self_attn.q_proj', 'down'],
    ['text_encoder.text_model.encoder.layers.0.self_attn.out_proj.lora_linear_layer.up.weight', 'self_attn.out_proj', 'up'],
    ['text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_A.weight', 'mlp.fc1', 'down'],
    ['lora_te_text_model_encoder_layers_0_self_attn_out_proj.lora_up.weight', 'self_attn.out_proj', 'up'],
    ['lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha', 'mlp.fc1', 'alpha'],
  ])('%s', (name, path, part) => {
    expect(text(name)).toEqual({ path: `text_model.encoder.layers.0.${path}`, part });
    expect(unet(name)).toBe('other component');
  });

  test('what cannot be applied says so', () => {
    expect(unet('lora_unet_conv_out.lora_up.weight')).toEqual({ reason: 'the model has no such layer' });
    expect(unet('unet.conv_in.hada_w1_a')).toEqual({ reason: expect.stringContaining('LoHa') });
    expect(unet('unet.conv_in.weight')).toEqual({ reason: expect.stringContaining('not a name of any LoRA format') });
    expect(text('lora_te2_text_model_encoder_layers_0_mlp_fc1.alpha')).toBe('other component');
  });
});
