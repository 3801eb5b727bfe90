/** Pictures of what a pipeline is about to make: its predicted x0, decoded cheaply while it goes on. */
import type { Engine } from '../engine/device';
import { check } from '../engine/errors';
import { Graph } from '../engine/graph';
import { compile } from '../engine/program';
import { normals, RngStream } from '../engine/rng';
import { numel, showShape, type Shape } from '../engine/shape';
import { openWeights, readJson, type ModelFolder } from '../io/folder';
import { decodeLatentTiny, parseAutoencoderTinyConfig } from '../model/autoencoder_tiny';
import { Parameters, WeightStore } from '../model/parameters';
import { toImages } from './stage';

export interface PreviewImages {
  /** [N,3,H,W] in [0,1]. */
  readonly data: Float32Array;
  readonly shape: readonly [number, number, number, number];
}

export interface PreviewDecoder {
  /** Predicted x0 as diffusion models see it, [N,C,h,w]. */
  decode(x0: Float32Array, shape: Shape): Promise<PreviewImages>;
  destroy(): void;
}

/** For models of pixels: x0 is the image. */
export const pixelPreview: PreviewDecoder = {
  decode: (x0, shape) => Promise.resolve({ data: toImages(x0), shape: shape as PreviewImages['shape'] }),
  destroy: () => undefined,
};

/** An AutoencoderTiny, alone in a folder (config.json beside its weights). */
export async function tinyPreview(engine: Engine, folder: ModelFolder): Promise<PreviewDecoder> {
  const config = parseAutoencoderTinyConfig(await readJson(folder, 'config.json'), `${folder.name}/config.json`);
  const build = (shape: Shape) => {
    const parameters = new Parameters(new Graph());
    const latent = parameters.graph.input('latent', [...shape]);
    return { parameters, latent, image: decodeLatentTiny({ graph: parameters.graph, parameters }, config, latent) };
  };
  const weights = new WeightStore(engine, build([1, config.latent_channels, 1, 1]).parameters.specs.values(), 'preview decoder');
  const store = await openWeights(folder, '.');
  try {
    await weights.load(store, undefined, { rename: (name) => (name.startsWith('decoder.') ? name : null) });
  } finally {
    await store.close();
  }
  const compiled = new Map<string, Promise<{ write(x0: Float32Array): void; run(): Promise<Float32Array>; shape: Shape; destroy(): void }>>();
  const forShape = async (shape: Shape) => {
    const { parameters, latent, image } = build(shape);
    const program = await compile(engine, parameters.graph, { outputs: [image], bindings: weights.bindings(parameters), label: 'preview' });
    return {
      shape: image.shape,
      write: (x0: Float32Array) => program.write(latent, x0),
      run() {
        program.run();
        return program.read(image);
      },
      destroy: () => program.destroy(),
    };
  };
  // One after the other: they share a program's input.
  let last: Promise<unknown> = Promise.resolve();
  const decode = async (x0: Float32Array, shape: Shape): Promise<PreviewImages> => {
    check(shape[1] === config.latent_channels, 'input', () => `${folder.name}: it decodes ${config.latent_channels} channels, not those of latents ${showShape(shape)}`);
    const key = shape.join();
    if (!compiled.has(key)) compiled.set(key, forShape(shape));
    const program = await compiled.get(key)!;
    program.write(x0);
    return { data: toImages(await program.run()), shape: program.shape as unknown as PreviewImages['shape'] };
  };
  return {
    decode(x0, shape) {
      const next = last.then(() => decode(x0, shape));
      last = next.catch(() => undefined);
      return next;
    },
    destroy() {
      for (const program of compiled.values()) void program.then((p) => p.destroy(), () => undefined);
      weights.destroy();
    },
  };
}

export interface DecodeOptions {
  /** Heard between images, and between tiles. */
  readonly signal?: AbortSignal | undefined;
  /** Images decoded, or tiles of all passes over all images, and how many there are. */
  readonly onDecode?: ((done: number, total: number) => void) | undefined;
}

/** A latent decoder: latents [N,C,h,w] as diffusion models see them to images [N,3,h·factor,w·factor] of about [−1,1]. */
export interface LatentDecoder {
  readonly channels: number;
  readonly factor: number;
  /** @throws BruitError `aborted` where the signal was heard. */
  decode(latents: Float32Array, shape: Shape, options?: DecodeOptions): Promise<Float32Array>;
}

/**
 * Each latent pixel to one colour, linearly: what fits the decoder best on patches of noise. Coarse, but of the right colours, and of no cost. The
 * decoder runs once, on a few small latents.
 */
export async function linearPreview(decoder: LatentDecoder): Promise<PreviewDecoder> {
  const { channels, factor } = decoder;
  const [count, side, patch] = [4, 16, 4];
  const shape = [count, channels, side, side];
  const noise = normals(0, { index: 0, step: 0, stream: RngStream.noise }, numel(shape));
  const cell = (i: number): number => {
    const [x, y] = [i % side, Math.floor(i / side) % side];
    return i - (x % patch) - (y % patch) * side;
  };
  // Patches, and a little texture.
  const latents = noise.map((z, i) => 0.9 * noise[cell(i)]! + 0.1 * z);
  const pixels = await decoder.decode(latents, shape);
  const plane = side * side;
  const inputs: number[][] = [];
  const colours: number[][] = [];
  for (let n = 0; n < count; n++) {
    for (let p = 0; p < plane; p++) {
      inputs.push([...Array.from({ length: channels }, (_, c) => latents[(n * channels + c) * plane + p]!), 1]);
      colours.push(Array.from({ length: 3 }, (_, c) => meanOfTile(pixels, n * 3 + c, p, side, factor)));
    }
  }
  // Least squares; a decoder that ignores a channel leaves its column free.
  const { Matrix, solve } = await import('ml-matrix'); // a file of its own, which few programs load
  const weights = solve(new Matrix(inputs), new Matrix(colours), true);
  return {
    decode(x0, [n, , h, w]) {
      const size = h! * w!;
      const data = new Float32Array(n! * 3 * size);
      for (let i = 0; i < n!; i++) {
        for (let c = 0; c < 3; c++) {
          for (let p = 0; p < size; p++) {
            let sum = weights.get(channels, c);
            for (let k = 0; k < channels; k++) sum += weights.get(k, c) * x0[(i * channels + k) * size + p]!;
            data[(i * 3 + c) * size + p] = sum;
          }
        }
      }
      return Promise.resolve({ data: toImages(data), shape: [n!, 3, h!, w!] });
    },
    destroy: () => undefined,
  };
}

/** Mean of the `factor`² pixels of plane `plane` that latent pixel `p` stands for. */
function meanOfTile(pixels: Float32Array, plane: number, p: number, side: number, factor: number): number {
  const width = side * factor;
  const [x, y] = [(p % side) * factor, Math.floor(p / side) * factor];
  let sum = 0;
  for (let dy = 0; dy < factor; dy++) for (let dx = 0; dx < factor; dx++) sum += pixels[plane * width * width + (y + dy) * width + x + dx]!;
  return sum / factor ** 2;
}
