/** What a pipeline takes in GPU memory, from its folder's configs alone: no weight is fetched, and no device is needed. */
import type { AdapterProfile } from '../engine/device';
import { BruitError } from '../engine/errors';
import { estimate, type GraphEstimate } from '../engine/estimate';
import { Graph, type Tensor } from '../engine/graph';
import { numel } from '../engine/shape';
import { readJson, type ModelFolder } from '../io/folder';
import { decodeLatent, encodeImage, latentFactor, parseAutoencoderKLConfig } from '../model/autoencoder_kl';
import { clipText, clipVision, parseCLIPTextConfig, parseCLIPVisionConfig } from '../model/clip';
import { controlNet, controlNetInputs, parseControlNetConfig } from '../model/controlnet';
import type { ModelContext } from '../model/layers';
import { Parameters } from '../model/parameters';
import { parsePriorTransformerConfig, priorTransformer, priorTransformerInputs } from '../model/prior_transformer';
import { parseT5Config, t5Encoder } from '../model/t5';
import { parseTransformer2DConfig, transformer2d, transformer2dInputs } from '../model/transformer2d';
import { parseUnCLIPTextProjConfig, unclipTextProj } from '../model/unclip_text_proj';
import { parseUNet2DConfig, unet2d, unet2dInputs } from '../model/unet2d';
import { conditionInputs, parseUNet2DConditionConfig, unet2dCondition } from '../model/unet2d_condition';
import { decodeQuantized, parseVQModelConfig } from '../model/vq_model';
import { weightBytes, weightFormat, type WeightStorage } from '../model/weight_format';
import { pipelineClass } from './component';
import { addedSizes } from './declarations';
import { planDecoding, type DecodingPlan } from './latent_decoder';

/** A GPU of which nothing is known: what WebGPU guarantees. */
export const defaultProfile: AdapterProfile = {
  kind: 'gpu',
  name: "any GPU within WebGPU's default limits",
  f16: false,
  subgroups: false,
  subgroupSize: undefined,
  subgroupMatrix: undefined,
  timestamps: false,
  limits: {
    maxStorageBuffersPerShaderStage: 8,
    maxStorageBufferBindingSize: 128 * 2 ** 20,
    maxBufferSize: 256 * 2 ** 20,
    maxComputeWorkgroupStorageSize: 16384,
    maxComputeInvocationsPerWorkgroup: 256,
    maxComputeWorkgroupsPerDimension: 65535,
    minStorageBufferOffsetAlignment: 256,
    minUniformBufferOffsetAlignment: 256,
  },
};

export interface MemoryOptions {
  readonly profile?: AdapterProfile;
  /** How weights lie in GPU memory; `auto` counts as f32, since only a checkpoint knows its own types. */
  readonly weights?: WeightStorage;
  /** Images at once; 1 by default. */
  readonly batch?: number;
  /** Of the images, for latent diffusion; the U-Net's sample_size by default. */
  readonly height?: number | undefined;
  readonly width?: number | undefined;
  /** Whether denoisers are evaluated for two batches at once, as guidance needs; so by default where there is a text or a class. */
  readonly guided?: boolean;
  /** As in the pipeline's options. */
  readonly vaeTiling?: boolean | undefined;
  /** Folders of ControlNets beside the pipeline's own. */
  readonly controlnets?: readonly ModelFolder[];
}

export interface ComponentMemory {
  /** Sub-folder. */
  readonly name: string;
  readonly className: string;
  readonly parameters: number;
  /** As they lie in GPU memory. */
  readonly weightBytes: number;
  /** Planned buffers of one run beside the weights. */
  readonly activationBytes: number;
  /** The largest of them. */
  readonly largestBytes: number;
}

export interface PipelineMemory {
  readonly pipeline: string;
  readonly components: readonly ComponentMemory[];
  /** Weights and activations at the worst moment: components are loaded and freed in turn, a U-Net together with its ControlNets. */
  readonly peakBytes: number;
  /** Components in memory at that moment. */
  readonly peakOf: readonly string[];
  /** All weights in memory, as with `keep`. */
  readonly keptBytes: number;
}

/** What the graphs of all components are built for. */
interface Sizes {
  readonly batch: number;
  readonly rows: number;
  readonly height: number | undefined;
  readonly width: number | undefined;
  /** Whether the pipeline takes images. */
  readonly encodes: boolean;
  /** Pixels for a latent. */
  readonly factor: number;
  /** [h, w] of the latents. */
  readonly latent: readonly [number, number] | undefined;
}

/** Tokens of a text in CLIP's window, which IF's T5 has too. */
const TOKENS = 77;

type Build = (ctx: ModelContext, json: unknown, file: string, sizes: Sizes) => Tensor[];

const sampleSize = (own: readonly [number, number] | undefined, { latent }: Sizes, file: string): readonly [number, number] => {
  const size = latent ?? own;
  if (!size) throw new BruitError('input', `${file} has no sample_size: give a height and a width`);
  return size;
};

/** Graphs by the classes of model_index.json. */
const builders: Readonly<Record<string, Build>> = {
  CLIPTextModel: (ctx, json, file, { rows }) => {
    const config = parseCLIPTextConfig(json, file);
    return [clipText(ctx, config, { inputIds: ctx.graph.input('input_ids', [rows, config.max_position_embeddings], 'i32') }).lastHiddenState];
  },
  CLIPTextModelWithProjection: (ctx, json, file, { rows }) => {
    const config = parseCLIPTextConfig(json, file);
    const out = clipText(ctx, config, { inputIds: ctx.graph.input('input_ids', [rows, config.max_position_embeddings], 'i32') }, { projection: true });
    return [out.lastHiddenState, out.textEmbeds!];
  },
  CLIPVisionModelWithProjection: (ctx, json, file, { batch }) => {
    const config = parseCLIPVisionConfig(json, file);
    return [clipVision(ctx, config, ctx.graph.input('pixels', [batch, config.num_channels, config.image_size, config.image_size]), { projection: true }).imageEmbeds!];
  },
  T5EncoderModel: (ctx, json, file, { rows }) => [t5Encoder(ctx, parseT5Config(json, file), { inputIds: ctx.graph.input('input_ids', [rows, TOKENS], 'i32'), attentionMask: ctx.graph.input('attention_mask', [rows, TOKENS], 'i32') }).lastHiddenState],
  UNet2DConditionModel: (ctx, json, file, sizes) => {
    const config = parseUNet2DConditionConfig(json, file);
    return [unet2dCondition(ctx, config, conditionInputs(ctx, config, { sample: [sizes.rows, ...sampleSize(config.sample_size, sizes, file)], tokens: TOKENS, ...addedSizes(config) }))];
  },
  ControlNetModel: (ctx, json, file, sizes) => {
    const config = parseControlNetConfig(json, file);
    const { down, mid } = controlNet(ctx, config, controlNetInputs(ctx, config, { sample: [sizes.rows, ...sampleSize(undefined, sizes, file)], tokens: TOKENS, ...addedSizes(config) }));
    return [...down, mid];
  },
  UNet2DModel: (ctx, json, file, sizes) => {
    const config = parseUNet2DConfig(json, file);
    return [unet2d(ctx, config, unet2dInputs(ctx, config, [sizes.batch, ...sampleSize(config.sample_size, sizes, file)]))];
  },
  Transformer2DModel: (ctx, json, file, { rows }) => {
    const config = parseTransformer2DConfig(json, file);
    return [transformer2d(ctx, config, transformer2dInputs(ctx, config, [rows, config.sample_size!, config.sample_size!]))];
  },
  PriorTransformer: (ctx, json, file, { rows }) => {
    const config = parsePriorTransformerConfig(json, file);
    return [priorTransformer(ctx, config, priorTransformerInputs(ctx, config, rows))];
  },
  UnCLIPTextProjModel: (ctx, json, file, { batch }) => {
    const config = parseUnCLIPTextProjConfig(json, file);
    const width = config.clip_embeddings_dim;
    const leaf = (name: string, shape: number[]): Tensor => ctx.graph.input(name, shape);
    const out = unclipTextProj(ctx, config, { imageEmbeds: leaf('image_embeds', [batch, width]), promptEmbeds: leaf('prompt_embeds', [2 * batch, width]), textEncoderHiddenStates: leaf('states', [2 * batch, TOKENS, width]) });
    return [out.additiveClipTimeEmbeddings, out.encoderHiddenStates];
  },
  AutoencoderKL: (ctx, json, file, sizes) => {
    const config = parseAutoencoderKLConfig(json, file);
    // The encoder is loaded too, where images may be given; here it is no part of what is run.
    if (sizes.encodes) encodeImage(ctx, config, ctx.graph.input('image', [1, config.in_channels, sizes.factor, sizes.factor]));
    return [decodeLatent(ctx, config, ctx.graph.input('latent', [sizes.batch, config.latent_channels, ...sampleSize(undefined, sizes, file)]))];
  },
  VQModel: (ctx, json, file, sizes) => {
    const config = parseVQModelConfig(json, file);
    return [decodeQuantized(ctx, config, ctx.graph.input('latent', [sizes.batch, config.vq_embed_dim, ...sampleSize(undefined, sizes, file)]))];
  },
};

const whole = ({ plannedBytes, slots }: GraphEstimate): Pick<DecodingPlan, 'activationBytes' | 'largestBytes'> => ({ activationBytes: plannedBytes, largestBytes: Math.max(0, ...slots) });

/** As pipelines decode: in tiles where they must. */
function decoding(json: unknown, file: string, sizes: Sizes, options: { readonly profile: AdapterProfile; readonly tiling: boolean }): DecodingPlan {
  const config = parseAutoencoderKLConfig(json, file);
  return planDecoding(config, [sizes.batch, config.latent_channels, ...sampleSize(undefined, sizes, file)], options);
}

/**
 * Plans every component of a pipeline's folder at a size.
 * @throws BruitError `config` for configs that bruit cannot run, `input` where a size is missing or is no multiple of the autoencoder's factor.
 */
export async function estimatePipeline(folder: ModelFolder, options: MemoryOptions = {}): Promise<PipelineMemory> {
  const { profile = defaultProfile, batch = 1, height, width, weights = 'f32', controlnets = [], vaeTiling: tiling = false } = options;
  const pipeline = await pipelineClass(folder);
  const index = await readJson(folder, 'model_index.json');
  const classes = Object.entries(index).flatMap(([name, value]): [string, string][] => (Array.isArray(value) && typeof value[1] === 'string' && Object.hasOwn(builders, value[1]) ? [[name, value[1]]] : []));
  if (classes.length === 0) throw new BruitError('config', `${folder.name}: model_index.json names ${pipeline}, none of whose models is known`);
  const guided = options.guided ?? classes.some(([, kind]) => /Text|T5|Transformer2D|Prior/.test(kind));
  const own: ComponentMemory[] = [];
  const found: { name: string; kind: string; json: unknown; file: string }[] = [];
  for (const [name, kind] of classes) found.push({ name, kind, json: await readJson(folder, `${name}/config.json`), file: `${folder.name}/${name}/config.json` });
  if (!classes.some(([name]) => name === 'controlnet') && controlnets.length === 0 && (await folder.has('controlnet/config.json'))) found.push({ name: 'controlnet', kind: 'ControlNetModel', json: await readJson(folder, 'controlnet/config.json'), file: `${folder.name}/controlnet/config.json` });
  for (const net of controlnets) found.push({ name: net.name, kind: 'ControlNetModel', json: await readJson(net, 'config.json'), file: `${net.name}/config.json` });

  const vae = found.find(({ kind }) => kind === 'AutoencoderKL' || kind === 'VQModel');
  const factor = vae ? latentFactor(vae.kind === 'VQModel' ? parseVQModelConfig(vae.json, vae.file) : parseAutoencoderKLConfig(vae.json, vae.file)) : 1;
  const sizes: Sizes = { batch, rows: guided ? 2 * batch : batch, height, width, factor, encodes: /^(StableDiffusion|LatentConsistency)/.test(pipeline), latent: latentSize(found, { height, width, factor }, vae !== undefined) };
  for (const { name, kind, json, file } of found) {
    const graph = new Graph();
    const parameters = new Parameters(graph);
    const outputs = builders[kind]!({ graph, parameters }, json, file, sizes);
    const plan = kind === 'AutoencoderKL' ? decoding(json, file, sizes, { profile, tiling }) : whole(estimate(graph, outputs, profile));
    const count = [...parameters.specs.values()].reduce((n, s) => n + numel(s.shape), 0);
    own.push({ name, className: kind, parameters: count, weightBytes: [...parameters.specs.values()].reduce((n, s) => n + weightBytes(s, weightFormat(s, weights)), 0), activationBytes: plan.activationBytes, largestBytes: plan.largestBytes });
  }
  // A U-Net's steps are taken with its ControlNets in memory; everything else comes and goes.
  const nets = own.filter(({ className }) => className === 'ControlNetModel');
  const moments = own.filter(({ className }) => className !== 'ControlNetModel').map((c) => (c.name === 'unet' ? [c, ...nets] : [c]));
  const bytes = (together: readonly ComponentMemory[]): number => together.reduce((n, c) => n + c.weightBytes + c.activationBytes, 0);
  const worst = moments.reduce((a, b) => (bytes(b) > bytes(a) ? b : a));
  const activations = Math.max(...moments.map((together) => together.reduce((n, c) => n + c.activationBytes, 0)));
  return { pipeline, components: own, peakBytes: bytes(worst), peakOf: worst.map(({ name }) => name), keptBytes: own.reduce((n, c) => n + c.weightBytes, 0) + activations };
}

function latentSize(found: readonly { name: string; kind: string; json: unknown; file: string }[], { height, width, factor }: Pick<Sizes, 'height' | 'width' | 'factor'>, latent: boolean): readonly [number, number] | undefined {
  if ((height === undefined) !== (width === undefined)) throw new BruitError('input', 'give a height and a width together, or neither');
  if (height !== undefined && width !== undefined) {
    for (const side of [height, width]) if (side < factor || side % factor) throw new BruitError('input', `height ${height} and width ${width} must be multiples of ${factor}`);
    return [height / factor, width / factor];
  }
  if (!latent) return undefined;
  const denoiser = found.find(({ name }) => name === 'unet' || name === 'transformer');
  const own = (denoiser?.json as { sample_size?: number | readonly [number, number] } | undefined)?.sample_size;
  if (typeof own === 'number') return [own, own];
  if (Array.isArray(own)) return own as unknown as readonly [number, number];
  throw new BruitError('input', `${denoiser?.file ?? 'the pipeline'} has no sample_size: give a height and a width`);
}

/**
 * Refuses what an adapter cannot hold, before any weight is fetched.
 * @param memory Bytes that the adapter can use, where that is known: WebGPU does not tell.
 * @throws BruitError `limit` naming the component, what it needs and what there is.
 */
export function checkMemory({ components, peakBytes, peakOf }: PipelineMemory, { name, limits }: AdapterProfile, memory?: number): void {
  const show = (bytes: number): string => `${(bytes / 2 ** 30).toFixed(2)} GiB`;
  const wide = components.find((c) => c.largestBytes > limits.maxStorageBufferBindingSize);
  if (wide) throw new BruitError('limit', `${wide.name} needs a tensor of ${show(wide.largestBytes)}, but ${name} binds at most ${show(limits.maxStorageBufferBindingSize)} at once: make smaller or fewer images at once (--height, --width, --batch)`);
  if (memory !== undefined && peakBytes > memory) throw new BruitError('limit', `${peakOf.join(' with ')} needs ${show(peakBytes)} of GPU memory, more than the ${show(memory)} that there are: make smaller or fewer images at once, or take a smaller model`);
}
