/** Text and image encoders, as transformers writes them. */
import { clipText, clipVision, parseCLIPTextConfig, parseCLIPVisionConfig } from '../../model/clip';
import type { ModelContext } from '../../model/layers';
import { parseT5Config, t5Encoder } from '../../model/t5';
import type { ModelClass, RecordedInputs } from '../model';

const tokenInputs = (ctx: ModelContext, io: RecordedInputs) => {
  const shape = io.shape('input_ids', 2);
  return { inputIds: ctx.graph.input('input_ids', shape, 'i32'), attentionMask: io.has('attention_mask') ? ctx.graph.input('attention_mask', shape, 'i32') : undefined };
};

const clipTextClass = (name: string, projection: boolean): ModelClass => ({
  names: [name],
  weights: 'model',
  inputs: ['input_ids'],
  open(json, file) {
    const config = parseCLIPTextConfig(json, file);
    return {
      forward(ctx, io) {
        const { hiddenStates, lastHiddenState, poolerOutput, textEmbeds } = clipText(ctx, config, tokenInputs(ctx, io), { projection });
        return {
          penultimate_hidden_state: hiddenStates[hiddenStates.length - 2]!,
          last_hidden_state: lastHiddenState,
          pooler_output: poolerOutput,
          ...(textEmbeds && { text_embeds: textEmbeds }),
        };
      },
    };
  },
});

const clipVisionClass = (name: string, projection: boolean): ModelClass => ({
  names: [name],
  weights: 'model',
  inputs: ['pixel_values'],
  open(json, file) {
    const config = parseCLIPVisionConfig(json, file);
    return {
      forward(ctx, io) {
        const { hiddenStates, lastHiddenState, poolerOutput, imageEmbeds } = clipVision(ctx, config, ctx.graph.input('pixel_values', io.shape('pixel_values', 4)), { projection });
        return {
          penultimate_hidden_state: hiddenStates[hiddenStates.length - 2]!,
          last_hidden_state: lastHiddenState,
          pooler_output: poolerOutput,
          ...(imageEmbeds && { image_embeds: imageEmbeds }),
        };
      },
    };
  },
});

const t5EncoderClass: ModelClass = {
  names: ['T5EncoderModel'],
  weights: 'model',
  inputs: ['input_ids'],
  open(json, file) {
    const config = parseT5Config(json, file);
    return {
      forward(ctx, io) {
        const { inputIds, attentionMask } = tokenInputs(ctx, io);
        const { lastHiddenState, positionBias } = t5Encoder(ctx, config, { inputIds, attentionMask });
        return { position_bias: positionBias, last_hidden_state: lastHiddenState, last_hidden_state_without_mask: t5Encoder(ctx, config, { inputIds }).lastHiddenState };
      },
    };
  },
};

export const textModels: readonly ModelClass[] = [
  clipTextClass('CLIPTextModel', false),
  clipTextClass('CLIPTextModelWithProjection', true),
  clipVisionClass('CLIPVisionModel', false),
  clipVisionClass('CLIPVisionModelWithProjection', true),
  t5EncoderClass,
];
