/** Autoencoders in training: their own loss, and the latents that they give to denoisers. */
import { checkIndex, type ImageDataset } from '../data/dataset';
import type { Engine } from '../engine/device';
import { Graph, type Tensor } from '../engine/graph';
import { concat, split } from '../engine/ops/copy';
import { add, exp, scale, shift, square, sub } from '../engine/ops/pointwise';
import { reshape } from '../engine/ops/reshape';
import { mean } from '../engine/ops/sum';
import { compile, type BufferView } from '../engine/program';
import { RngStream } from '../engine/rng';
import { autoencoderHalf, decodeLatent, encodeImage, latentFactor, sampleLatent, scaleLatent, type AutoencoderKLConfig, type LatentDistribution } from '../model/autoencoder_kl';
import type { ModelContext } from '../model/layers';
import { Parameters, WeightStore } from '../model/parameters';
import type { TensorStore } from '../io/safetensors';
import { componentContext } from './components';
import type { BuildForward, TrainingStepConfig } from './step';

const flatMean = (x: Tensor): Tensor => reshape(mean(x, [1, 2, 3]), [x.shape[0]!]);

/**
 * The training of an AutoencoderKL (Kingma & Welling 2014; Rombach et al. 2022, without their adversarial and perceptual terms): mean squared error of
 * the reconstruction from a sample, plus `klWeight` times the KL divergence from the standard normal distribution, both means over their values.
 */
export const autoencoderForward =
  (config: AutoencoderKLConfig, klWeight: number): BuildForward =>
  (ctx, { images }, draws) => {
    const own = componentContext(ctx, 'vae', true);
    const latents = encodeImage(own, config, images);
    const { mean: mu, logvar } = latents;
    const xt = sampleLatent(latents, draws.noise(mu.shape));
    const prediction = decodeLatent(own, config, xt);
    const kl = scale(flatMean(sub(add(square(mu), exp(logvar)), shift(logvar, 1))), 0.5);
    const perSample = add(flatMean(square(sub(prediction, images))), scale(kl, klWeight));
    return { loss: reshape(mean(perSample, [0]), [1]), perSample, xt, prediction };
  };

/** Latents as a denoiser's step learns them: sampled anew for every batch, scaled. `cached`: images are the encoder's moments already. */
export const latentsOf =
  (config: AutoencoderKLConfig, cached: boolean): NonNullable<TrainingStepConfig['latents']> =>
  (ctx, images, draws) => {
    const distribution = cached ? splitMoments(images) : encodeFrozen(ctx, config, images);
    return scaleLatent(config, sampleLatent(distribution, draws.normal(distribution.mean.shape, RngStream.latent)));
  };

/** In f32 whatever the denoiser computes in: half precision overflows in some autoencoders. */
function encodeFrozen(ctx: ModelContext, config: AutoencoderKLConfig, images: Tensor): LatentDistribution {
  const { computeType, ...rest } = componentContext(ctx, 'vae', false);
  return encodeImage(rest, config, images);
}

function splitMoments(moments: Tensor): LatentDistribution {
  const channels = moments.shape[1]! / 2;
  const [mu, logvar] = split(moments, 1, [channels, channels]) as [Tensor, Tensor];
  return { mean: mu, logvar };
}

/** An autoencoder's encoder, compiled: images [N,C,H,W] to the means and log-variances of their latents [N,2·latent_channels,h,w]. */
export class Encoder {
  private constructor(
    private readonly program: Awaited<ReturnType<typeof compile>>,
    private readonly images: Tensor,
    private readonly moments: Tensor,
  ) {}

  /** @param bindings Memory of the encoder's weights. */
  static async create(engine: Engine, config: AutoencoderKLConfig, batch: number, size: readonly [number, number], bindings: (parameters: Parameters) => Map<Tensor, BufferView>): Promise<Encoder> {
    const parameters = new Parameters(new Graph());
    const { graph } = parameters;
    const images = graph.input('images', [batch, config.in_channels, ...size]);
    const { mean: mu, logvar } = encodeImage({ graph, parameters }, config, images);
    const moments = concat([mu, logvar], 1);
    return new Encoder(await compile(engine, graph, { outputs: [moments], bindings: bindings(parameters), label: 'encoder' }), images, moments);
  }

  /** Moments of items `first` … `first + count − 1` of a data set; returns their labels. */
  async encode(dataset: ImageDataset, first: number, count: number, out: Float32Array): Promise<number[]> {
    const labels: number[] = [];
    const [batch, ...rest] = this.images.shape as [number, number, number, number];
    const size = rest.reduce((a, b) => a * b, 1);
    const per = this.moments.shape.slice(1).reduce((a, b) => a * b, 1);
    for (let at = first; at < first + count; at += batch) {
      const n = Math.min(batch, first + count - at);
      const images = new Float32Array(batch * size);
      const items = await Promise.all(Array.from({ length: n }, (_, i) => dataset.get(at + i)));
      items.forEach(({ image, label }, i) => {
        images.set(image, i * size);
        labels.push(label);
      });
      this.program.write(this.images, images);
      this.program.run();
      out.set((await this.program.read(this.moments)).subarray(0, n * per), (at - first) * per);
    }
    return labels;
  }

  destroy(): void {
    this.program.destroy();
  }
}

/** `dataset` encoded once: images are the moments [2·latent_channels,h,w] of its latents. Takes 8·latent_channels·h·w bytes of host memory an image. */
export async function encodeDataset(engine: Engine, config: AutoencoderKLConfig, store: TensorStore, dataset: ImageDataset, { batch = 32, onProgress }: { batch?: number; onProgress?: (done: number, total: number) => void } = {}): Promise<ImageDataset> {
  const [, height, width] = dataset.shape;
  const factor = latentFactor(config);
  const shape = [2 * config.latent_channels, height / factor, width / factor] as const;
  const per = shape[0] * shape[1] * shape[2];
  const moments = new Float32Array(dataset.length * per);
  const labels: number[] = [];
  let weights: WeightStore | undefined;
  const encoder = await Encoder.create(engine, config, batch, [height, width], (parameters) => {
    weights = new WeightStore(engine, parameters.specs.values(), 'encoder');
    return weights.bindings(parameters);
  });
  try {
    await weights!.load(store, undefined, { rename: autoencoderHalf('encoder') });
    for (let at = 0; at < dataset.length; at += batch) {
      const n = Math.min(batch, dataset.length - at);
      labels.push(...(await encoder.encode(dataset, at, n, moments.subarray(at * per, (at + n) * per))));
      onProgress?.(at + n, dataset.length);
    }
  } finally {
    encoder.destroy();
    weights!.destroy();
  }
  return {
    ...dataset,
    name: `${dataset.name} (latents)`,
    shape,
    async get(index) {
      checkIndex(index, dataset.length, dataset.name);
      return { image: moments.subarray(index * per, (index + 1) * per), label: labels[index]! };
    },
  };
}

/** 1/σ of the latents of a data set's first images: what `scaling_factor` is by its definition (Rombach et al. 2022, appendix G). */
export async function measureScalingFactor(encoder: Encoder, config: AutoencoderKLConfig, dataset: ImageDataset, images = 256): Promise<number> {
  const n = Math.min(images, dataset.length);
  const factor = latentFactor(config);
  const half = (config.latent_channels * dataset.shape[1] * dataset.shape[2]) / factor ** 2;
  const moments = new Float32Array(n * 2 * half);
  await encoder.encode(dataset, 0, n, moments);
  let [sum, squares] = [0, 0];
  for (let i = 0; i < n; i++) {
    for (let k = 0; k < half; k++) {
      const mu = moments[i * 2 * half + k]!;
      sum += mu;
      // A sample's square is the mean's and the variance.
      squares += mu * mu + Math.exp(moments[i * 2 * half + half + k]!);
    }
  }
  const count = n * half;
  return 1 / Math.sqrt(squares / count - (sum / count) ** 2);
}
