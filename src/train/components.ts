/** The models that a training step is built of, each with weights under its own folder's name, trained or not. */
import type { Tensor } from '../engine/graph';
import type { Shape } from '../engine/shape';
import type { MatchOptions } from '../io/checkpoint';
import { autoencoderHalf } from '../model/autoencoder_kl';
import type { ModelContext } from '../model/layers';
import { Parameters, type Init, type WeightLayout } from '../model/parameters';
import { modelFolders, type TrainConfig } from './config';

export type ComponentName = 'unet' | 'transformer' | 'vae' | 'text_encoder';

/** One model of a step. */
export interface StepComponent {
  readonly name: ComponentName;
  /** Base name of its file of weights. */
  readonly file: 'diffusion_pytorch_model' | 'model';
  /** Its config.json. */
  readonly json: object;
  /** Its own weights change. */
  readonly trained: boolean;
  /** How names in its file are read. */
  readonly load?: MatchOptions;
}

/** What diffusers and transformers need to know a config by. */
const textEncoderClass = { architectures: ['CLIPTextModel'], model_type: 'clip_text_model' };

/** Components of a recipe's step. With cached latents the autoencoder is none of them. */
export function stepComponents({ model, modelJson, textEncoder, vae, method, trainTextEncoder, cacheLatents }: TrainConfig): StepComponent[] {
  const own: StepComponent = { name: modelFolders[model.kind], file: 'diffusion_pytorch_model', json: { _class_name: model.kind, ...modelJson }, trained: method === 'full' };
  return [
    own,
    ...(textEncoder ? [{ name: 'text_encoder', file: 'model', json: { ...textEncoderClass, ...textEncoder.json }, trained: trainTextEncoder } as const] : []),
    ...(vae && !cacheLatents ? [{ name: 'vae', file: 'diffusion_pytorch_model', json: { _class_name: 'AutoencoderKL', ...vae.json }, trained: false, load: { rename: autoencoderHalf('encoder') } } as const] : []),
  ];
}

/** Weights of one component among those of a step: `unet.conv_in.weight`. */
class ComponentParameters extends Parameters {
  constructor(
    private readonly all: Parameters,
    private readonly prefix: string,
    private readonly trained: boolean,
  ) {
    super(all.graph);
  }

  override get(name: string, shape: Shape, layout: WeightLayout, init: Init, trainable = true): Tensor {
    return this.all.get(`${this.prefix}.${name}`, shape, layout, init, trainable && this.trained);
  }
}

/** `ctx` for building the model `name`. Models that are not trained have no dropout, as in `eval()`. */
export function componentContext(ctx: ModelContext, name: ComponentName, trained: boolean): ModelContext {
  const { dropout, ...rest } = ctx;
  return { ...rest, parameters: new ComponentParameters(ctx.parameters, name, trained), ...(trained && dropout && { dropout }) };
}
