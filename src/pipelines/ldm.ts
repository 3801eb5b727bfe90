/** Unconditional latent diffusion (Rombach et al. 2022): diffusers' LDMPipeline (model_index.json, unet/, vqvae/, scheduler/); vqvae is a VQModel or an AutoencoderKL. */
import type { Engine } from '../engine/device';
import { BruitError, check } from '../engine/errors';
import type { Tensor } from '../engine/graph';
import { readJson, type ModelFolder } from '../io/folder';
import { autoencoderHalf, decodeLatent, latentFactor, parseAutoencoderKLConfig, unscaleLatent, type AutoencoderKLConfig } from '../model/autoencoder_kl';
import type { ModelContext } from '../model/layers';
import { unet2d, type UNet2DConfig } from '../model/unet2d';
import { decodeQuantized, parseVQModelConfig, type VQModelConfig } from '../model/vq_model';
import { createSampler, type SamplerOptions, type SchedulerConfig } from '../sampler/scheduler_config';
import { checkPipelineClass, Component, openScheduler, type LoadingOptions } from './component';
import { pixelUNet } from './declarations';
import type { LatentDecoder } from './preview';
import { Progress, runStage, toImages, type LatentCall, type PipelineImages } from './stage';

export interface LDMCall extends LatentCall {
  /** Images; 1 by default. */
  readonly batch_size?: number;
  /** 50 by default. */
  readonly num_inference_steps?: number;
  /** In place of the folder's. */
  readonly scheduler?: SchedulerConfig;
  readonly schedulerOptions?: Omit<SamplerOptions, 'numInferenceSteps'>;
  /** [height, width] of the images; what the U-Net's sample_size makes by default. */
  readonly size?: readonly [number, number];
}

type Decoder = AutoencoderKLConfig & Partial<VQModelConfig>;

/** Channels of a latent, and the decoder of either kind of autoencoder. */
const latentChannels = (config: Decoder): number => config.vq_embed_dim ?? config.latent_channels;
const decode = (ctx: ModelContext, config: Decoder, latent: Tensor): Tensor => (config.num_vq_embeddings === undefined ? decodeLatent(ctx, config, latent) : decodeQuantized(ctx, config as VQModelConfig, latent));

export class LDMPipeline {
  private constructor(
    readonly engine: Engine,
    readonly name: string,
    readonly unet: Component<UNet2DConfig>,
    readonly vqvae: Component<Decoder>,
    readonly scheduler: SchedulerConfig,
  ) {}

  /** Reads the folder's configs; weights are loaded by calls, one component after another. */
  static async fromFolder(engine: Engine, folder: ModelFolder, loading: LoadingOptions = {}): Promise<LDMPipeline> {
    await checkPipelineClass(folder, 'LDMPipeline');
    const { vqvae: [, kind] = [] } = (await readJson(folder, 'model_index.json')) as { vqvae?: unknown[] };
    const unet = await Component.open(engine, folder, pixelUNet('unet'), loading);
    const vqvae = await Component.open<Decoder>(engine, folder, {
      name: 'vqvae',
      weights: 'diffusion_pytorch_model',
      parse: kind === 'AutoencoderKL' ? parseAutoencoderKLConfig : parseVQModelConfig,
      declare: (ctx, config) => void decode(ctx, config, ctx.graph.input('latent', [1, latentChannels(config), 1, 1])),
      load: { rename: autoencoderHalf('decoder') },
    }, loading);
    const channels = latentChannels(vqvae.config);
    check(unet.config.in_channels === channels && unet.config.out_channels === channels, 'config', () => `${folder.name}/unet: ${unet.config.in_channels} channels in and ${unet.config.out_channels} out; latents of vqvae have ${channels}`);
    check(unet.config.num_class_embeds === null && unet.config.class_embed_type === null, 'config', () => `${folder.name}/unet: it has classes, but LDMPipeline is unconditional`);
    return new LDMPipeline(engine, folder.name, unet, vqvae, await openScheduler(folder));
  }

  /** The autoencoder's decoder by itself. */
  get latentDecoder(): LatentDecoder {
    const { vqvae } = this;
    return {
      channels: latentChannels(vqvae.config),
      factor: latentFactor(vqvae.config),
      // All images at once.
      async decode(latents, shape, { signal, onDecode } = {}) {
        if (signal?.aborted) throw new BruitError('aborted', 'decoding was aborted before it began', { cause: signal.reason });
        const { decoded } = await vqvae.run((ctx, inputs) => ({ decoded: decode(ctx, vqvae.config, unscaleLatent(vqvae.config, inputs.add('latent', shape, latents))) }));
        onDecode?.(shape[0]!, shape[0]!);
        return decoded;
      },
    };
  }

  async generate(call: LDMCall = {}): Promise<PipelineImages> {
    const { batch_size: n = 1, num_inference_steps: numInferenceSteps = 50, onRecord } = call;
    const { engine, unet, vqvae } = this;
    check(Number.isInteger(n) && n >= 1, 'input', () => `LDMPipeline: batch_size ${n} must be a whole number of at least 1`);
    const factor = latentFactor(vqvae.config);
    check(!call.size || call.size.every((side) => Number.isInteger(side) && side >= factor && side % factor === 0), 'input', () => `LDMPipeline: height and width [${call.size!.join(', ')}] must be multiples of ${factor}`);
    const size = call.size?.map((side) => side / factor) ?? unet.config.sample_size;
    check(size, 'input', () => `${this.name}: the U-Net's config has no sample_size, so give a size`);
    const shape = [n, unet.config.in_channels, size[0]!, size[1]!] as const;
    const program = createSampler(call.scheduler ?? this.scheduler, { numInferenceSteps, ...call.schedulerOptions });
    const progress = new Progress(program.steps.length, call.onProgress);
    const latents = await unet.use((weights) => runStage({ engine, call, program, ...(call.latents && { latents: call.latents }), shape, weights, progress, model: (ctx, sample, timestep) => unet2d(ctx, unet.config, { sample, timestep }), timeModel: (ctx, sample, timestep) => unet2d(ctx, unet.config, { sample, timestep }) }));
    const decoded = await this.latentDecoder.decode(latents, shape, call);
    onRecord?.('decoded', decoded);
    const images = toImages(decoded);
    onRecord?.('image', images);
    return { images, samples: decoded, shape: [n, vqvae.config.out_channels, shape[2] * factor, shape[3] * factor] };
  }
}
