/** Configurations of the conditioned denoisers: what is asked of the checkpoint and of the caller, without a device. */
import { describe, expect, test } from 'vitest';
import { Graph } from '../../src/engine/graph';
import { controlNet, controlNetInputs, parseControlNetConfig } from '../../src/model/controlnet';
import type { ModelContext } from '../../src/model/layers';
import { Parameters } from '../../src/model/parameters';
import { parsePriorTransformerConfig } from '../../src/model/prior_transformer';
import { parseTransformer2DConfig } from '../../src/model/transformer2d';
import { parseUNet2DConfig, unet2d, unet2dInputs } from '../../src/model/unet2d';
import { conditionInputs, parseUNet2DConditionConfig, unet2dCondition, type ConditionSizes } from '../../src/model/unet2d_condition';

const small = {
  block_out_channels: [8, 16],
  down_block_types: ['CrossAttnDownBlock2D', 'DownBlock2D'],
  up_block_types: ['UpBlock2D', 'CrossAttnUpBlock2D'],
  layers_per_block: 1,
  norm_num_groups: 4,
  attention_head_dim: 4,
  cross_attention_dim: 32,
};
const simple = { ...small, down_block_types: ['ResnetDownsampleBlock2D', 'SimpleCrossAttnDownBlock2D'], up_block_types: ['SimpleCrossAttnUpBlock2D', 'ResnetUpsampleBlock2D'], mid_block_type: 'UNetMidBlock2DSimpleCrossAttn' };
/** As the latent upscaler has it. */
const k = {
  ...small,
  block_out_channels: [32, 64, 64],
  down_block_types: ['KDownBlock2D', 'KCrossAttnDownBlock2D', 'KCrossAttnDownBlock2D'],
  up_block_types: ['KCrossAttnUpBlock2D', 'KCrossAttnUpBlock2D', 'KUpBlock2D'],
  norm_num_groups: null,
  mid_block_type: null,
  time_embedding_dim: 64,
};
const context = (): ModelContext => {
  const graph = new Graph();
  return { graph, parameters: new Parameters(graph) };
};

function build(config: object, sizes: Partial<ConditionSizes> = {}) {
  const ctx = context();
  const parsed = parseUNet2DConditionConfig(config);
  const inputs = conditionInputs(ctx, parsed, { sample: [2, 8, 12], tokens: 5, ...sizes });
  const { shape } = unet2dCondition(ctx, parsed, inputs);
  return { shape, leaves: ctx.graph.leaves.filter((l) => l.kind === 'input').map((l) => `${l.name} [${l.shape}]`), specs: new Map([...ctx.parameters.specs].map(([name, s]) => [name, `[${s.shape}]`])) };
}

/** Every expected weight with its shape; `null`: must not exist. */
const variants: Readonly<Record<string, readonly [config: object, sizes: Partial<ConditionSizes>, weights: Readonly<Record<string, string | null>>]>> = {
  'a middle block of one residual block': [{ ...small, mid_block_type: 'UNetMidBlock2D' }, {}, { 'mid_block.resnets.0.conv1.weight': '[16,16,3,3]', 'mid_block.resnets.1.conv1.weight': null, 'mid_block.attentions.0.proj_in.weight': null }],
  'no middle block': [{ ...small, mid_block_type: null }, {}, { 'mid_block.resnets.0.conv1.weight': null, 'conv_out.weight': '[4,8,3,3]' }],
  'depths, heads and text widths by resolution': [
    { ...small, transformer_layers_per_block: [2, 3], attention_head_dim: [2, 4], cross_attention_dim: [32, 24], layers_per_block: [2, 1], mid_block_type: null },
    {},
    { 'down_blocks.0.attentions.1.transformer_blocks.1.attn2.to_k.weight': '[8,32]', 'down_blocks.0.attentions.0.transformer_blocks.2.norm1.weight': null, 'up_blocks.1.attentions.2.proj_in.weight': '[8,8,1,1]', 'up_blocks.0.resnets.1.conv1.weight': '[16,24,3,3]', 'up_blocks.0.resnets.2.conv1.weight': null },
  ],
  'the first attention reads the text, too': [{ ...small, only_cross_attention: [true, false] }, {}, { 'down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_v.weight': '[8,32]', 'mid_block.attentions.0.transformer_blocks.0.attn1.to_v.weight': '[16,16]' }],
  'two conditions': [{ ...small, dual_cross_attention: true, transformer_layers_per_block: 2 }, { tokens: 100 }, { 'down_blocks.0.attentions.0.transformers.1.transformer_blocks.0.attn2.to_k.weight': '[8,32]', 'down_blocks.0.attentions.0.transformers.0.transformer_blocks.1.norm1.weight': null }],
  'keys of the text alone in Simple blocks, the middle apart': [
    { ...simple, only_cross_attention: true, mid_block_only_cross_attention: false, cross_attention_norm: 'layer_norm' },
    {},
    { 'down_blocks.1.attentions.0.to_k.weight': null, 'mid_block.attentions.0.to_k.weight': '[16,16]', 'down_blocks.1.attentions.0.add_k_proj.weight': '[16,32]', 'down_blocks.1.attentions.0.norm_cross.weight': '[32]', 'down_blocks.0.downsamplers.0.conv2.weight': '[8,8,3,3]' },
  ],
  'SDXL: pooled text and sizes': [{ ...small, addition_embed_type: 'text_time', addition_time_embed_dim: 6, projection_class_embeddings_input_dim: 46 }, { textEmbeds: 10, timeIds: 6 }, { 'add_embedding.linear_1.weight': '[32,46]', 'add_embedding.linear_2.weight': '[32,32]' }],
  'classes, concatenated': [{ ...small, num_class_embeds: 7, class_embeddings_concat: true }, {}, { 'class_embedding.weight': '[7,32]', 'mid_block.resnets.0.time_emb_proj.weight': '[16,64]' }],
  'classes through a projection': [{ ...small, class_embed_type: 'projection', projection_class_embeddings_input_dim: 9 }, {}, { 'class_embedding.linear_1.weight': '[32,9]' }],
  'classes through a linear layer': [{ ...small, class_embed_type: 'simple_projection', projection_class_embeddings_input_dim: 9 }, {}, { 'class_embedding.weight': '[32,9]' }],
  'Fourier features, guidance embedding, activations around them': [
    { ...small, time_embedding_type: 'fourier', time_embedding_dim: 20, time_cond_proj_dim: 6, timestep_post_act: 'silu', time_embedding_act_fn: 'gelu' },
    { timestepCond: true },
    { 'time_proj.weight': '[10]', 'time_embedding.linear_1.weight': '[20,20]', 'time_embedding.cond_proj.weight': '[20,6]', 'time_embedding.cond_proj.bias': null },
  ],
  'a guidance embedding that is not given still has weights': [{ ...small, time_cond_proj_dim: 6 }, {}, { 'time_embedding.cond_proj.weight': '[8,6]' }],
  'Kandinsky 2.1': [{ ...simple, encoder_hid_dim: 20, encoder_hid_dim_type: 'text_image_proj', addition_embed_type: 'text_image' }, { textEmbeds: 32 }, { 'encoder_hid_proj.image_embeds.weight': '[320,32]', 'encoder_hid_proj.text_proj.weight': '[32,20]', 'add_embedding.text_norm.weight': '[32]', 'add_embedding.image_proj.weight': '[32,32]' }],
  'Kandinsky 2.2 with a hint': [{ ...simple, in_channels: 8, encoder_hid_dim: 20, encoder_hid_dim_type: 'image_proj', addition_embed_type: 'image_hint' }, {}, { 'encoder_hid_proj.image_embeds.weight': '[1024,20]', 'encoder_hid_proj.norm.weight': '[32]', 'add_embedding.input_hint_block.14.weight': '[4,256,3,3]', 'conv_in.weight': '[8,8,3,3]' }],
  'K blocks: attention over the pixels in the innermost blocks alone, one residual block less on the way up': [
    k,
    {},
    {
      'down_blocks.0.resnets.0.norm1.linear.weight': '[64,64]',
      'down_blocks.1.resnets.0.conv_shortcut.bias': null,
      'down_blocks.1.attentions.0.attn1.to_q.weight': null,
      'down_blocks.2.attentions.0.attn1.to_q.bias': '[64]',
      'down_blocks.2.attentions.0.attn2.norm_cross.weight': '[32]',
      'up_blocks.0.attentions.0.norm1.linear.weight': '[128,64]',
      'up_blocks.1.resnets.0.conv1.weight': '[64,128,3,3]',
      'up_blocks.1.resnets.0.conv2.weight': '[32,64,3,3]',
      'up_blocks.1.resnets.0.conv_shortcut.weight': '[32,128,1,1]',
      'up_blocks.1.attentions.0.attn2.to_q.weight': '[32,32]',
      'up_blocks.2.resnets.1.conv1.weight': null,
      'conv_norm_out.weight': null,
    },
  ],
  'norms by the time embedding': [{ ...small, resnet_time_scale_shift: 'ada_group' }, {}, { 'mid_block.resnets.0.norm2.linear.weight': '[32,32]', 'mid_block.resnets.0.norm2.weight': null, 'mid_block.resnets.0.time_emb_proj.weight': null, 'conv_norm_out.weight': '[8]' }],
  'wide outer convolutions': [{ ...small, conv_in_kernel: 5, conv_out_kernel: 1 }, {}, { 'conv_in.weight': '[8,4,5,5]', 'conv_out.weight': '[4,8,1,1]' }],
};

describe('UNet2DConditionModel', () => {
  test.each(Object.entries(variants))('%s', (_, [config, sizes, weights]) => {
    const { shape, specs } = build(config, sizes);
    expect(shape).toEqual([2, 4, 8, 12]);
    for (const [name, wanted] of Object.entries(weights)) expect(specs.get(name) ?? null, name).toBe(wanted);
  });

  test('inputs that a config asks for', () => {
    expect(build(variants['Kandinsky 2.2 with a hint']![0]).leaves).toEqual(['sample [2,4,8,12]', 'timestep [2]', 'image_embeds [2,20]', 'hint [2,3,64,96]']);
    expect(build({ ...simple, class_embed_type: 'identity' }, { encoderAttentionMask: true, attentionMask: 5 }).leaves).toEqual(['sample [2,4,8,12]', 'timestep [2]', 'encoder_hidden_states [2,5,32]', 'class_labels [2,32]', 'attention_mask [2,5]', 'encoder_attention_mask [2,5]']);
  });

  test('UNet2DModel without norm_num_groups: the middle block goes by its own width, as the last norm does', () => {
    const ctx = context();
    const config = parseUNet2DConfig({ block_out_channels: [32, 64], down_block_types: ['KDownBlock2D', 'KDownBlock2D'], up_block_types: ['KUpBlock2D', 'KUpBlock2D'], layers_per_block: 1, norm_num_groups: null });
    expect(unet2d(ctx, config, unet2dInputs(ctx, config, [1, 8, 8])).shape).toEqual([1, 3, 8, 8]);
    const groups = new Map(ctx.graph.nodes.filter((n) => n.op.name === 'group_norm').map((n) => [n.path, (n.attrs as { groups: number }).groups]));
    expect(Object.fromEntries(['down_blocks.1.resnets.0.norm1', 'mid_block.resnets.0.norm1', 'mid_block.attentions.0.group_norm', 'conv_norm_out'].map((path) => [path, groups.get(path)]))).toEqual({
      'down_blocks.1.resnets.0.norm1': 1,
      'mid_block.resnets.0.norm1': 16,
      'mid_block.attentions.0.group_norm': 16,
      conv_norm_out: 8,
    });
  });

  test('a first attention that reads the text does not take its mask', () => {
    const ctx = context();
    const config = parseUNet2DConditionConfig({ ...small, only_cross_attention: true });
    unet2dCondition(ctx, config, conditionInputs(ctx, config, { sample: [1, 8, 8], tokens: 5, encoderAttentionMask: true }));
    const operands = new Map(ctx.graph.nodes.filter((n) => n.op.name === 'attention').map((n) => [n.path, n.inputs.length]));
    const block = 'down_blocks.0.attentions.0.transformer_blocks.0';
    expect([operands.get(`${block}.attn1`), operands.get(`${block}.attn2`)]).toEqual([3, 4]);
  });

  test('odd sizes come back', () => expect(build(small, { sample: [1, 7, 9] }).shape).toEqual([1, 4, 7, 9]));

  test('mistakes are named', () => {
    const message = (f: () => unknown): string => {
      try {
        f();
        return 'no error';
      } catch (e) {
        return (e as Error).message;
      }
    };
    const parse = (changes: object) => message(() => parseUNet2DConditionConfig({ ...small, ...changes }));
    expect({
      'number of heads': parse({ num_attention_heads: 8 }),
      'lists of another length': parse({ attention_head_dim: [1, 2, 3] }),
      'a block of the wrong family': parse({ down_block_types: ['AttnDownBlock2D', 'DownBlock2D'] }),
      'fewer up blocks': parse({ up_block_types: ['UpBlock2D'] }),
      'gated attention': parse({ attention_type: 'gated' }),
      'half a projection': parse({ class_embed_type: 'projection' }),
      'half an addition': parse({ addition_embed_type: 'text_time', addition_time_embed_dim: 4 }),
      'a projection of nothing': parse({ encoder_hid_dim_type: 'text_proj' }),
      'an unknown entry': parse({ norm_groups: 3 }),
      'an unknown activation': parse({ timestep_post_act: 'snake' }),
      'text of another width': message(() => {
        const ctx = context();
        const config = parseUNet2DConditionConfig(small);
        unet2dCondition(ctx, config, { ...conditionInputs(ctx, config, { sample: [1, 8, 8], tokens: 3 }), encoderHiddenStates: ctx.graph.input('text', [1, 3, 48]) });
      }),
      'no text': message(() => {
        const ctx = context();
        const config = parseUNet2DConditionConfig(small);
        unet2dCondition(ctx, config, { sample: ctx.graph.input('sample', [1, 4, 8, 8]), timestep: ctx.graph.input('t', [1]) });
      }),
      'an odd size where residual blocks resample': message(() => build(simple, { sample: [1, 7, 8] })),
      'a ControlNet of another depth': message(() => {
        const ctx = context();
        const config = parseUNet2DConditionConfig(small);
        const inputs = conditionInputs(ctx, config, { sample: [1, 8, 8], tokens: 3 });
        unet2dCondition(ctx, config, { ...inputs, control: { down: [], mid: inputs.sample } });
      }),
      'a small control image': message(() => {
        const ctx = context();
        const config = parseControlNetConfig({ block_out_channels: [8, 16], down_block_types: ['CrossAttnDownBlock2D', 'DownBlock2D'], norm_num_groups: 4, attention_head_dim: 4, cross_attention_dim: 32 });
        controlNet(ctx, config, { ...controlNetInputs(ctx, config, { sample: [1, 8, 8], tokens: 3 }), controlnetCond: ctx.graph.input('image', [1, 3, 8, 8]) });
      }),
      'patches that do not divide': message(() => parseTransformer2DConfig({ in_channels: 4, patch_size: 3, sample_size: 8, norm_type: 'ada_norm_zero', num_embeds_ada_norm: 5 })),
      'ada_norm': message(() => parseTransformer2DConfig({ in_channels: 4, num_embeds_ada_norm: 5 })),
      'no groups': parse({ norm_num_groups: null }),
      'K blocks of widths that do not go together': message(() => build({ ...k, time_embedding_dim: 32 })),
      'an image of one row among K blocks': message(() => build(k, { sample: [1, 2, 8] })),
      'an unknown token': message(() => parsePriorTransformerConfig({ added_emb_type: 'cls' })),
    }).toMatchInlineSnapshot(`
      {
        "K blocks of widths that do not go together": "up_blocks.0: KCrossAttnUpBlock2D takes 128 channels here, skip connection included, but is given 64: block_out_channels, time_embedding_dim and the types of the blocks do not go together",
        "a ControlNet of another depth": "UNet2DConditionModel: 0 residuals of a ControlNet for 4 skip connections: the two were not made for each other",
        "a block of the wrong family": "config.json: "down_block_types" holds "AttnDownBlock2D", known are DownBlock2D, ResnetDownsampleBlock2D, CrossAttnDownBlock2D, SimpleCrossAttnDownBlock2D, KDownBlock2D, KCrossAttnDownBlock2D",
        "a projection of nothing": "config.json: encoder_hid_dim_type "text_proj" needs encoder_hid_dim",
        "a small control image": "ControlNetModel: controlnet_cond [1,3,8,8] must be [1, 3, 64, 64] (8 times the sample's height and width)",
        "ada_norm": "config.json: num_embeds_ada_norm without norm_type "ada_norm_zero" means "ada_norm" in diffusers, which is not supported",
        "an image of one row among K blocks": "down_blocks.1.downsamplers.0: an image of [1,1,4,64] [N,H,W,C] is too small to be resampled: it needs two rows and columns to mirror",
        "an odd size where residual blocks resample": "up_blocks.1: features of 6x8 meet a skip connection of 7x8: this U-Net wants heights and widths that divide by two at each of its resolutions",
        "an unknown activation": "timestep_post_act "snake" is unknown; known are silu, swish, mish, gelu, relu, quick_gelu, gelu_new, gelu_pytorch_tanh",
        "an unknown entry": "config.json: unknown entry "norm_groups"",
        "an unknown token": "config.json: "added_emb_type" is "cls", but must be one of prd or null",
        "fewer up blocks": "config.json: these must have one entry per resolution each: down_block_types has 2, up_block_types has 1, block_out_channels has 2",
        "gated attention": "config.json: "attention_type" is "gated": gated self-attention (GLIGEN) is not supported",
        "half a projection": "config.json: class_embed_type "projection" needs projection_class_embeddings_input_dim",
        "half an addition": "config.json: addition_embed_type "text_time" needs projection_class_embeddings_input_dim",
        "lists of another length": "config.json: "attention_head_dim" is [1,2,3], but must be a positive integer, or a list of 2 (one for each of block_out_channels)",
        "no groups": "config.json: norm_num_groups is null, but not all blocks are K blocks, which alone do without it",
        "no text": "down_blocks.0.attentions.0 attends to the text, but no encoder_hidden_states were given",
        "number of heads": "config.json: "num_attention_heads" is 8: diffusers refuses it here, because attention_head_dim holds the number of heads for historical reasons: give that",
        "patches that do not divide": "config.json: sample_size 8 does not divide into patches of 3",
        "text of another width": "down_blocks.0.attentions.0.transformer_blocks.0: encoder_hidden_states [1,3,48] must have cross_attention_dim = 32 channels",
      }
    `);
  });
});

test('ControlNet: pooled residuals, reversed channels, heads of its own', () => {
  const ctx = context();
  const config = parseControlNetConfig({ block_out_channels: [8, 16], down_block_types: ['CrossAttnDownBlock2D', 'DownBlock2D'], norm_num_groups: 4, num_attention_heads: [2, 4], cross_attention_dim: 32, global_pool_conditions: true, controlnet_conditioning_channel_order: 'bgr', conditioning_embedding_out_channels: [4, 6, 10] });
  const { down, mid } = controlNet(ctx, config, controlNetInputs(ctx, config, { sample: [2, 8, 8], tokens: 3 }));
  expect(down.map((t) => t.shape)).toEqual([[2, 1, 1, 8], [2, 1, 1, 8], [2, 1, 1, 8], [2, 1, 1, 8], [2, 1, 1, 16], [2, 1, 1, 16]]);
  expect(mid.shape).toEqual([2, 1, 1, 16]);
  expect(ctx.graph.leaves.find((l) => l.name === 'controlnet_cond')!.shape).toEqual([2, 3, 32, 32]);
});
