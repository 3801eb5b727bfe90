/**
 * AutoencoderKL's decoder over images that do not fit the device whole. What sees the whole image runs on the whole latent, where it is small:
 * the first convolution, the mid block with its attention, and as many of the blocks that follow as take no more memory than a tile does. The
 * rest, which is nearly all the memory, runs tile by tile.
 *
 * Two things keep tiles from being what they are in the whole image. Convolutions see nothing beyond a tile: tiles overlap, the outer latents of
 * an overlap are dropped, and the rest is blended. Group norms take their statistics from all of the image: every pass over the tiles sums them
 * over the image and gives them to the next. The first pass has each tile's own, which would show as seams; from the second on all tiles are one
 * function of their surroundings. With every pass one more norm has exactly the statistics of the whole image. The last pass writes the image.
 */
import type { AdapterProfile, Engine } from '../engine/device';
import { BruitError } from '../engine/errors';
import { estimate } from '../engine/estimate';
import { Graph, type Tensor } from '../engine/graph';
import { groupNorm as groupNormOp } from '../engine/ops/group_norm';
import { matmul } from '../engine/ops/matmul';
import { add, cast, mul, square, sub } from '../engine/ops/pointwise';
import { reshape } from '../engine/ops/reshape';
import { accumulateInto } from '../engine/ops/state';
import { upsampleNearest } from '../engine/ops/upsample_nearest';
import { compile, tensorUsage, type Program } from '../engine/program';
import { dtypeBytes, numel, type Shape } from '../engine/shape';
import { autoencoderType, decodeRest, decodeStart, latentFactor, type AutoencoderKLConfig } from './autoencoder_kl';
import type { ModelContext } from './layers';
import { Parameters, type WeightStore } from './parameters';

export interface TiledDecodeOptions {
  /** Latents along a side of a tile; 64 by default. Memory grows with its square. */
  readonly tile?: number;
  /** Latents that neighbouring tiles share, at most half a tile; 16 by default. */
  readonly overlap?: number;
  /**
   * Passes over the tiles, 2 by default: shared, nearly right statistics. 1 leaves every tile its own, which shows as steps of colour. `exact`
   * is as many as there are norms, and gives the whole image's numbers but for what an overlap is too narrow for.
   */
  readonly passes?: number | 'exact';
  /** Storage of activations, f32 by default. f16 where the config has `force_upcast` false; an image that overflows in it is decoded again in f32. */
  readonly computeType?: 'f32' | 'f16';
  readonly signal?: AbortSignal;
  /** Called after each tile of each pass. */
  readonly onProgress?: (done: number, total: number) => void;
}

export interface TiledImage {
  /** [N,out_channels,H,W]. */
  readonly shape: Shape;
  readonly data: Float32Array;
  /** Bytes of activations of the largest of the programs that ran, one after the other. */
  readonly plannedBytes: number;
  /** How activations were stored in the end. */
  readonly computeType: 'f32' | 'f16';
}

/** A stretch of an axis that one tile computes, in latents. */
export interface TileSpan {
  readonly start: number;
  readonly size: number;
  /** The stretch that this tile alone stands for: statistics count every latent once. */
  readonly core: readonly [number, number];
  /** Half the width of the blend around the ends of the core. */
  readonly blend: number;
}

/** Tiles of equal size along an axis of `length`, evenly spread, overlapping by `overlap` or more. */
export function tileSpans(length: number, tile: number, overlap: number): TileSpan[] {
  if (length <= tile) return [{ start: 0, size: length, core: [0, length], blend: 0 }];
  const count = Math.ceil((length - overlap) / (tile - overlap));
  const starts = Array.from({ length: count }, (_, i) => Math.round((i * (length - tile)) / (count - 1)));
  // Seams lie in the middle of what neighbours share.
  const seams = [0, ...starts.slice(1).map((start, i) => Math.floor((start + starts[i]! + tile) / 2)), length];
  return starts.map((start, i) => ({ start, size: tile, core: [seams[i]!, seams[i + 1]!] as const, blend: overlap / 8 }));
}

/** Share of the pixel at `u` (in latents) that is this tile's; those of all tiles of an axis add up to 1. */
export function tileWeight({ core: [from, to], blend }: TileSpan, u: number, length: number): number {
  const ramp = (distance: number): number => (blend === 0 ? Number(distance >= 0) : Math.min(Math.max((distance + blend) / (2 * blend), 0), 1));
  return (from === 0 ? 1 : ramp(u - from)) * (to === length ? 1 : ramp(to - u));
}

interface NormSite {
  readonly groups: number;
  readonly channels: number;
  readonly eps: number;
  /** Elements of a channel in the whole image. */
  readonly area: number;
  /** Sums of x and of (x − mean)² over the cores, f32 [N,1,C] each; states. */
  readonly sums: Tensor;
  readonly squares: Tensor;
  /** What this pass normalises by; absent in the first. */
  readonly given?: { readonly mean: Tensor; readonly rstd: Tensor };
}

interface Statistics {
  /** f32 [N·C], each group's number at each of its channels. */
  readonly mean: Float32Array;
  readonly rstd: Float32Array;
}

/** Decodes `latent` [N,latent_channels,h,w] (unscaled) with the decoder's weights in `weights`. */
export async function decodeTiled(engine: Engine, config: AutoencoderKLConfig, weights: WeightStore, latent: { readonly shape: Shape; readonly data: Float32Array }, options: TiledDecodeOptions = {}): Promise<TiledImage> {
  const { tile = 64, overlap = 16, passes = 2, signal, onProgress } = options;
  const computeType = autoencoderType(config, options.computeType);
  if (!Number.isInteger(tile) || !Number.isInteger(overlap) || tile < 2 || overlap < 0 || overlap > tile / 2) throw new BruitError('input', `tile ${tile} and overlap ${overlap} must be whole numbers of latents, the overlap at most half a tile`);
  if (passes !== 'exact' && (!Number.isInteger(passes) || passes < 1)) throw new BruitError('input', `passes ${passes} must be an integer of at least 1, or 'exact'`);
  if (!canTile(config)) throw new BruitError('config', 'AutoencoderKL: a decoder with AttnUpDecoderBlock2D sees the whole image in every block and cannot be tiled; decode it whole');
  const [n, , height, width] = latent.shape as [number, number, number, number];
  const tiles = tileSpans(height, tile, overlap).flatMap((row) => tileSpans(width, tile, overlap).map((column) => ({ row, column })));
  const { row: { size: tileHeight }, column: { size: tileWidth } } = tiles[0]!;
  const whole = wholeBlocks(config, height * width, tileHeight * tileWidth);
  const grown = 2 ** whole;
  const channels = featureChannels(config, whole);
  const features = engine.createBuffer('decoder features', n * height * width * grown * grown * channels * dtypeBytes[computeType], tensorUsage);
  try {
    let plannedBytes = await computeStart(engine, config, weights, latent, whole, computeType, features);
    const factor = latentFactor(config);
    const shape = [n, config.out_channels, height * factor, width * factor];
    const data = new Float32Array(numel(shape));
    // A tile that is the whole image has its statistics.
    const rounds = tiles.length === 1 ? 1 : passes === 'exact' ? normsBehind(config, whole) + 1 : passes;
    const setup = { batch: n, size: [tileHeight, tileWidth] as const, area: height * width, whole, channels, computeType };
    let statistics: Map<string, Statistics> | undefined;
    // The first pass has a program of its own; the others share one.
    for (const [first, end] of [[0, 1], [1, rounds]] as const) {
      if (first === end) continue;
      const program = await TileProgram.create(engine, config, weights, { ...setup, statistics: first > 0 });
      plannedBytes = Math.max(plannedBytes, program.plannedBytes);
      try {
        for (let round = first; round < end; round++) {
          const last = round === rounds - 1;
          if (statistics) program.give(statistics);
          for (const [i, { row, column }] of tiles.entries()) {
            if (signal?.aborted) throw new BruitError('aborted', `decoding was aborted after ${i} of ${tiles.length} tiles of pass ${round + 1} of ${rounds}`, { cause: signal.reason });
            program.run(features, [height, width], row, column, grown);
            if (last) blend(data, shape, await program.image(), row, column, factor);
            else await program.done();
            onProgress?.(round * tiles.length + i + 1, rounds * tiles.length);
          }
          if (!last) statistics = await program.collect(statistics);
        }
      } finally {
        program.destroy();
      }
    }
    // What overflowed in f16 is infinite and turns every norm behind it into NaN.
    if (computeType !== 'f16' || data.every(Number.isFinite)) return { shape, data, plannedBytes, computeType };
  } finally {
    engine.destroyBuffer(features);
  }
  return decodeTiled(engine, config, weights, latent, { ...options, computeType: 'f32' });
}

/** Whether a decoder can work tile by tile: attention in its up blocks sees the whole image. */
export const canTile = (config: AutoencoderKLConfig): boolean => !config.up_block_types.includes('AttnUpDecoderBlock2D');

/** Memory that {@link decodeTiled} plans for its activations, without a device: the most at any time, and the largest buffer. */
export function estimateTiled(config: AutoencoderKLConfig, shape: Shape, profile: AdapterProfile, { tile = 64, overlap = 16, passes = 2 }: Pick<TiledDecodeOptions, 'tile' | 'overlap' | 'passes'> = {}): { readonly plannedBytes: number; readonly largestBytes: number } {
  const [n, , height, width] = shape as [number, number, number, number];
  const size = [tileSpans(height, tile, overlap)[0]!.size, tileSpans(width, tile, overlap)[0]!.size] as const;
  const whole = wholeBlocks(config, height * width, size[0] * size[1]);
  const channels = featureChannels(config, whole);
  const features = n * height * width * 4 ** whole * channels * dtypeBytes.f32;
  const start = new Graph();
  const plans = [estimate(start, [decodeStart({ graph: start, parameters: new Parameters(start) }, config, start.input('latent', shape), whole)], profile)];
  for (const statistics of passes === 1 ? [false] : [false, true]) {
    const { graph, outputs } = tileGraph(config, { batch: n, size, area: height * width, whole, channels, computeType: 'f32', statistics });
    plans.push(estimate(graph, outputs, profile));
  }
  return { plannedBytes: features + Math.max(...plans.map((p) => p.plannedBytes)), largestBytes: Math.max(features, ...plans.flatMap((p) => p.slots)) };
}

/** Channels of the features behind the first `blocks` up blocks. */
const featureChannels = ({ block_out_channels: channels }: AutoencoderKLConfig, blocks: number): number => channels[Math.min(channels.length - blocks, channels.length - 1)]!;

/** Leading up blocks whose largest value, over the whole image, is no larger than that of the last block over a tile. */
function wholeBlocks({ block_out_channels: channels }: AutoencoderKLConfig, latents: number, tileLatents: number): number {
  const last = channels.length - 1;
  // A block's upsampler has its own channels at twice the size; the last block has its predecessor's channels at full size.
  const largest = tileLatents * 4 ** last * channels[Math.min(1, last)]!;
  let blocks = 0;
  while (blocks < last && latents * 4 ** (blocks + 1) * channels[last - blocks]! <= largest) blocks++;
  return blocks;
}

/** Group norms behind the first `blocks` up blocks: two a residual block, and conv_norm_out. */
const normsBehind = ({ up_block_types, layers_per_block }: AutoencoderKLConfig, blocks: number): number => (up_block_types.length - blocks) * (layers_per_block + 1) * 2 + 1;

/** The start of the decoder over the whole latent, into `features` [N,h',w',C]; returns its planned bytes. */
async function computeStart(engine: Engine, config: AutoencoderKLConfig, weights: WeightStore, { shape, data }: { readonly shape: Shape; readonly data: Float32Array }, blocks: number, computeType: 'f32' | 'f16', features: GPUBuffer): Promise<number> {
  const graph = new Graph();
  const parameters = new Parameters(graph);
  const input = graph.input('latent', shape);
  const output = decodeStart({ graph, parameters, computeType }, config, input, blocks);
  const program = await compile(engine, graph, { outputs: [output], bindings: new Map([...weights.bindings(parameters), [output, { buffer: features, offset: 0 }]]), label: 'decoder start' });
  try {
    program.write(input, data);
    program.run();
    await program.done();
    return program.plan.plannedBytes;
  } finally {
    program.destroy();
  }
}

interface TileSetup {
  readonly batch: number;
  /** Latents of a tile. */
  readonly size: readonly [number, number];
  /** Latents of the whole image. */
  readonly area: number;
  /** Up blocks that the features have been through. */
  readonly whole: number;
  readonly channels: number;
  readonly computeType: 'f32' | 'f16';
  /** Whether statistics are given or each tile's own. */
  readonly statistics: boolean;
}

interface TileGraph {
  readonly graph: Graph;
  readonly parameters: Parameters;
  readonly features: Tensor;
  readonly mask: Tensor;
  readonly output: Tensor;
  readonly sites: ReadonlyMap<string, NormSite>;
  /** The image and all sums. */
  readonly outputs: readonly Tensor[];
}

/** The growing blocks over one tile, which also sum the statistics of every norm. */
function tileGraph(config: AutoencoderKLConfig, { batch, size: [rows, columns], area, whole, channels, computeType, statistics }: TileSetup): TileGraph {
  const graph = new Graph();
  const parameters = new Parameters(graph);
  const features = graph.input('features', [batch, rows * 2 ** whole, columns * 2 ** whole, channels], computeType);
  const mask = graph.input('core', [1, rows, columns, 1]);
  const sites = new Map<string, NormSite>();
  const masks = new Map<number, Tensor>();
  const groupNorm: ModelContext['groupNorm'] = (x, gamma, beta, { groups, eps }) => {
    const [n, h, w, c] = x.shape as [number, number, number, number];
    const core = masks.get(h) ?? reshape(upsampleNearest(mask, [h, w]), [1, h * w]);
    masks.set(h, core);
    const stat = (name: string): Tensor => graph.input(name, [n, 1, 1, c]);
    const given = statistics ? { mean: stat('mean'), rstd: stat('rstd') } : undefined;
    const x32 = cast(x, 'f32');
    const centred = given ? sub(x32, given.mean) : x32;
    const state = (name: string, values: Tensor): Tensor => {
      const t = graph.state(name, [n, 1, c]);
      accumulateInto(t, matmul(core, reshape(values, [n, h * w, c])));
      return t;
    };
    sites.set(graph.path, { groups, channels: c, eps, area: (area * h * w) / (rows * columns), sums: state('sums', x32), squares: state('squares', square(centred)), ...(given && { given }) });
    return given ? cast(add(mul(mul(centred, given.rstd), gamma), beta), computeType) : groupNormOp(x, gamma, beta, { groups, eps });
  };
  const output = decodeRest({ graph, parameters, computeType, groupNorm }, config, features, whole);
  return { graph, parameters, features, mask, output, sites, outputs: [output, ...[...sites.values()].flatMap((s) => [s.sums, s.squares])] };
}

/** Runs a {@link tileGraph}. */
class TileProgram {
  private constructor(
    private readonly program: Program,
    private readonly engine: Engine,
    private readonly features: Tensor,
    private readonly mask: Tensor,
    private readonly output: Tensor,
    private readonly sites: ReadonlyMap<string, NormSite>,
  ) {}

  static async create(engine: Engine, config: AutoencoderKLConfig, weights: WeightStore, setup: TileSetup): Promise<TileProgram> {
    const { graph, parameters, features, mask, output, sites, outputs } = tileGraph(config, setup);
    const program = await compile(engine, graph, { outputs, bindings: weights.bindings(parameters), label: 'decoder tile' });
    return new TileProgram(program, engine, features, mask, output, sites);
  }

  /** Statistics to normalise by; starts new sums. */
  give(statistics: ReadonlyMap<string, Statistics>): void {
    for (const [path, { given, sums, squares }] of this.sites) {
      const { mean, rstd } = statistics.get(path)!;
      this.program.write(given!.mean, mean);
      this.program.write(given!.rstd, rstd);
      for (const t of [sums, squares]) this.program.write(t, new Float32Array(numel(t.shape)));
    }
  }

  /** Computes a tile of `from` [N,height·grown,width·grown,C]; spans are in latents. */
  run(from: GPUBuffer, [height, width]: readonly [number, number], row: TileSpan, column: TileSpan, grown: number): void {
    const { device } = this.engine;
    const target = this.program.view(this.features);
    const [n, rows, columns] = this.features.shape as [number, number, number];
    const pixel = this.features.bytes / (n * rows * columns);
    const encoder = device.createCommandEncoder();
    for (let line = 0; line < n * rows; line++) {
      const [image, y] = [Math.floor(line / rows), line % rows];
      const source = ((image * height * grown + row.start * grown + y) * width * grown + column.start * grown) * pixel;
      encoder.copyBufferToBuffer(from, source, target.buffer, target.offset + line * columns * pixel, columns * pixel);
    }
    device.queue.submit([encoder.finish()]);
    const inside = ({ start, core: [first, last] }: TileSpan, i: number): boolean => start + i >= first && start + i < last;
    this.program.write(this.mask, Float32Array.from({ length: row.size * column.size }, (_, i) => Number(inside(row, Math.floor(i / column.size)) && inside(column, i % column.size))));
    this.program.run();
  }

  get plannedBytes(): number {
    return this.program.plan.plannedBytes;
  }

  done(): Promise<void> {
    return this.program.done();
  }

  image(): Promise<Float32Array> {
    return this.program.read(this.output);
  }

  /** The whole image's statistics from the sums of all tiles; `before` is what this pass normalised by. */
  async collect(before: ReadonlyMap<string, Statistics> | undefined): Promise<Map<string, Statistics>> {
    const all = new Map<string, Statistics>();
    for (const [path, { groups, channels, eps, area, sums, squares }] of this.sites) {
      const [s, q] = [await this.program.read(sums), await this.program.read(squares)];
      const width = channels / groups;
      const mean = new Float32Array(s.length);
      const rstd = new Float32Array(s.length);
      for (let first = 0; first < s.length; first += width) {
        const average = (x: Float32Array): number => x.subarray(first, first + width).reduce((a, b) => a + b, 0) / (area * width);
        const centre = average(s);
        const shifted = centre - (before?.get(path)!.mean[first] ?? 0);
        mean.fill(centre, first, first + width);
        rstd.fill(1 / Math.sqrt(Math.max(average(q) - shifted * shifted, 0) + eps), first, first + width);
      }
      all.set(path, { mean, rstd });
    }
    return all;
  }

  destroy(): void {
    this.program.destroy();
  }
}

/** Adds a tile's share to the image. */
function blend(image: Float32Array, shape: Shape, tile: Float32Array, row: TileSpan, column: TileSpan, factor: number): void {
  const [n, c, height, width] = shape as [number, number, number, number];
  const [h, w] = [row.size * factor, column.size * factor];
  const shares = (span: TileSpan, size: number, length: number): number[] => Array.from({ length: size }, (_, i) => tileWeight(span, span.start + (i + 0.5) / factor, length / factor));
  const [down, across] = [shares(row, h, height), shares(column, w, width)];
  for (let plane = 0; plane < n * c; plane++) {
    for (let y = 0; y < h; y++) {
      if (down[y] === 0) continue;
      const to = (plane * height + row.start * factor + y) * width + column.start * factor;
      for (let x = 0; x < w; x++) if (across[x] !== 0) image[to + x]! += down[y]! * across[x]! * tile[(plane * h + y) * w + x]!;
    }
  }
}
