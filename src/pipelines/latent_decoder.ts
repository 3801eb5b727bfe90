/** How pipelines decode latents: all images at once where that fits the device's bindings, else one by one, else in tiles. */
import type { AdapterProfile } from '../engine/device';
import { BruitError } from '../engine/errors';
import { estimate } from '../engine/estimate';
import { Graph } from '../engine/graph';
import { numel, type Shape } from '../engine/shape';
import { decodeLatent, latentFactor, unscaleLatent, type AutoencoderKLConfig } from '../model/autoencoder_kl';
import { Parameters } from '../model/parameters';
import { canTile, decodeTiled, estimateTiled } from '../model/tiled_decode';
import { runOnce, type Component } from './component';
import type { LatentDecoder } from './preview';

export interface DecodingPlan {
  /** Decoded at once. */
  readonly images: number;
  /** Latents along a side of a tile, where there are tiles; neighbours share a quarter of it. */
  readonly tile?: number;
  readonly activationBytes: number;
  /** The largest buffer. */
  readonly largestBytes: number;
}

/** Side of the latents from which on tiles are made where they are asked for. */
const TILE = 64;

/**
 * @param shape Of the latents, [N,C,h,w].
 * @param tiling As `vaeTiling` of a pipeline's options. What fits in no way is planned whole, and running it is an error.
 */
export function planDecoding(config: AutoencoderKLConfig, shape: Shape, { profile, tiling = false }: { readonly profile: AdapterProfile; readonly tiling?: boolean | undefined }): DecodingPlan {
  const [n, channels, height, width] = shape as [number, number, number, number];
  const limit = Math.min(profile.limits.maxStorageBufferBindingSize, profile.limits.maxBufferSize);
  const side = Math.max(height, width);
  const whole = (images: number): DecodingPlan => {
    const graph = new Graph();
    const plan = estimate(graph, [decodeLatent({ graph, parameters: new Parameters(graph) }, config, graph.input('latent', [images, channels, height, width]))], profile);
    return { images, activationBytes: plan.plannedBytes, largestBytes: Math.max(0, ...plan.slots) };
  };
  const first = whole(n);
  const single = n === 1 ? first : whole(1);
  const untiled = [first, single].find((plan) => plan.largestBytes <= limit);
  if (untiled && !(tiling && side > TILE)) return untiled;
  if (canTile(config)) {
    for (const tile of [TILE, 48, 32, 24, 16]) {
      if (tile >= side) continue;
      const { plannedBytes, largestBytes } = estimateTiled(config, [1, channels, height, width], profile, { tile, overlap: tile / 4 });
      if (largestBytes <= limit) return { images: 1, tile, activationBytes: plannedBytes, largestBytes };
    }
  }
  return untiled ?? first;
}

/** An autoencoder as a decoder of latents alone. Each shape is planned once. */
export function latentDecoderOf(vae: Component<AutoencoderKLConfig>): LatentDecoder {
  const plans = new Map<string, DecodingPlan>();
  const planned = (shape: Shape): DecodingPlan => {
    const known = plans.get(shape.join()) ?? planDecoding(vae.config, shape, { profile: vae.engine.profile, tiling: vae.loading.vaeTiling });
    plans.set(shape.join(), known);
    return known;
  };
  return {
    channels: vae.config.latent_channels,
    factor: latentFactor(vae.config),
    decode(latents, shape, { signal, onDecode } = {}) {
      const { config, engine } = vae;
      const [n, ...one] = shape as [number, ...number[]];
      const { images, tile } = planned(shape);
      return vae.use(async (weights) => {
        const parts: Float32Array[] = [];
        for (let i = 0; i < n; i += images) {
          if (signal?.aborted) throw new BruitError('aborted', `decoding was aborted after ${i} of ${n} images`, { cause: signal.reason });
          const data = latents.subarray(i * numel(one), (i + images) * numel(one));
          if (tile === undefined) {
            parts.push((await runOnce(engine, weights, (ctx, inputs) => ({ decoded: decodeLatent(ctx, config, unscaleLatent(config, inputs.add('latent', [images, ...one], data))) }))).decoded);
            onDecode?.(i + images, n);
          } else {
            // One image at a time, all in equally many tiles.
            const unscaled = { shape: [1, ...one], data: data.map((v) => v / config.scaling_factor + config.shift_factor) };
            const onProgress = onDecode && ((done: number, total: number) => onDecode(i * total + done, n * total));
            parts.push((await decodeTiled(engine, config, weights, unscaled, { tile, overlap: tile / 4, ...(signal && { signal }), ...(onProgress && { onProgress }) })).data);
          }
        }
        if (parts.length === 1) return parts[0]!;
        const decoded = new Float32Array(parts.reduce((sum, { length }) => sum + length, 0));
        parts.reduce((at, part) => (decoded.set(part, at), at + part.length), 0);
        return decoded;
      });
    },
  };
}
