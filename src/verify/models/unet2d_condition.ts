import { conditionInputs, parseUNet2DConditionConfig, unet2dCondition, type ConditionedConfig, type ConditionInputs, type ControlResiduals } from '../../model/unet2d_condition';
import type { ModelContext } from '../../model/layers';
import { transpose } from '../../engine/ops/copy';
import type { ModelClass, RecordedInputs } from '../model';

/** Leaves for what a record of a conditioned model holds, under diffusers' argument names. */
export function recordedConditions(ctx: ModelContext, config: ConditionedConfig, io: RecordedInputs, given: Partial<Pick<ConditionInputs, 'sample' | 'timestep'>> = {}): ConditionInputs {
  const [n, , height, width] = (given.sample?.shape ?? io.shape('sample', 4)) as [number, number, number, number];
  const columns = (name: string): number | undefined => (io.has(name) ? io.shape(name, 2)[1] : undefined);
  const [attentionMask, textEmbeds, timeIds] = [columns('attention_mask'), columns('text_embeds'), columns('time_ids')];
  const sizes = {
    sample: [n, height, width] as const,
    tokens: config.encoder_hid_dim_type === 'image_proj' ? 0 : io.shape('encoder_hidden_states', 3)[1]!,
    encoderAttentionMask: io.has('encoder_attention_mask'),
    timestepCond: io.has('timestep_cond'),
    ...(attentionMask && { attentionMask }),
    ...(textEmbeds && { textEmbeds }),
    ...(timeIds && { timeIds }),
  };
  return conditionInputs(ctx, config, sizes, given);
}

/** Residuals of a ControlNet that are recorded as images [N,C,H,W]. */
function recordedResiduals({ graph }: ModelContext, io: RecordedInputs): ControlResiduals | undefined {
  if (!io.has('mid_block_additional_residual')) return undefined;
  const leaf = (name: string) => transpose(graph.input(name, io.shape(name, 4)), [0, 2, 3, 1]);
  const down = [];
  for (let i = 0; io.has(`down_block_additional_residuals.${i}`); i++) down.push(leaf(`down_block_additional_residuals.${i}`));
  return { down, mid: leaf('mid_block_additional_residual') };
}

export const unet2dConditionModel: ModelClass = {
  names: ['UNet2DConditionModel'],
  weights: 'diffusion_pytorch_model',
  inputs: ['sample'],
  open(json, file) {
    const config = parseUNet2DConditionConfig(json, file);
    return {
      forward: (ctx, io) => ({ output: unet2dCondition(ctx, config, { ...recordedConditions(ctx, config, io), control: recordedResiduals(ctx, io) }) }),
      denoise: (ctx, io, sample, timestep) => unet2dCondition(ctx, config, recordedConditions(ctx, config, io, { sample, timestep })),
    };
  },
};
