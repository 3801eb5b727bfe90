/**
 * Reads mutated files until COUNT are done, in a process of its own whose memory and time others watch:
 *   node mutate.mjs ROOT COUNT SEED CURRENT
 * Prints one JSON line. Ends with 1 and the file in base64 at the first that does anything but give right numbers or a BruitError.
 */
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { Graph } from '../../src/engine/graph';
import { BruitError } from '../../src/engine/errors';
import { decodeImage } from '../../src/io/decode_image';
import { encodePng } from '../../src/io/png';
import { matchCheckpoint } from '../../src/io/checkpoint';
import { openSafetensors, openSharded, writeSafetensors, type TensorStore } from '../../src/io/safetensors';
import { bytesSource } from '../../src/io/source';
import { parseAutoencoderKLConfig } from '../../src/model/autoencoder_kl';
import { parseCLIPTextConfig, parseCLIPVisionConfig } from '../../src/model/clip';
import { parsePriorTransformerConfig } from '../../src/model/prior_transformer';
import { Parameters } from '../../src/model/parameters';
import { parseT5Config } from '../../src/model/t5';
import { parseTransformer2DConfig } from '../../src/model/transformer2d';
import { parseUNet2DConfig, unet2d, unet2dInputs } from '../../src/model/unet2d';
import { parseUNet2DConditionConfig } from '../../src/model/unet2d_condition';
import { parseTrainerState } from '../../src/train/trainer_state';
import { createSampler, parseSchedulerConfig } from '../../src/sampler/scheduler_config';
import { parseTrainConfig } from '../../src/train/config';

const [root, count, seed, current] = [process.argv[2]!, Number(process.argv[3]), Number(process.argv[4]), process.argv[5]!];
const golden = (...parts: string[]): Buffer => readFileSync(path.join(root, 'tests', 'goldens', ...parts));

// --- Mutations -------------------------------------------------------------------------------------------------------

let state = seed >>> 0;
/** A whole number below n (xorshift). */
const below = (n: number): number => {
  state ^= state << 13;
  state >>>= 0;
  state ^= state >>> 17;
  state ^= state << 5;
  state >>>= 0;
  return state % n;
};
const pick = <T>(list: readonly T[]): T => list[below(list.length)]!;

const numbers = ['0', '-1', '1', '2', '7', '255', '65536', '2147483648', '4294967296', '9007199254740991', '9007199254740993', '1e308', '1e400', '-0', '0.5', '1e-320', '00', '0x10', 'NaN', 'null', 'true', '""', '[]', '{}', '[[]]', '"9"'];

/** Edits of JSON as text: values, keys and structure, most of it still JSON. */
function mutateText(text: string): string {
  const at = below(Math.max(text.length, 1));
  switch (below(8)) {
    case 0: {
      const found = [...text.matchAll(/-?\d+(\.\d+)?(e-?\d+)?/g)];
      if (!found.length) return `${text}1`;
      const match = pick(found);
      return text.slice(0, match.index) + pick(numbers) + text.slice(match.index + match[0].length);
    }
    case 1: {
      const found = [...text.matchAll(/"(?:[^"\\]|\\.)*"/g)];
      if (!found.length) return '"';
      const match = pick(found);
      return text.slice(0, match.index) + pick([...found.map((m) => m[0]), '"__proto__"', '"constructor"', '"F32"', '"F16"', '"I64"', '"\\ud800"', '"../../etc/passwd"', 'null', '3']) + text.slice(match.index + match[0].length);
    }
    case 2: return text.slice(0, at);
    case 3: return text.slice(0, at) + pick([...'{}[]:,"\\0', '\u0000', '\n', '\ufeff', ',{}', '"a":1,']) + text.slice(at);
    case 4: return text.slice(0, at) + text.slice(at + 1 + below(8));
    case 5: return text.slice(0, at) + text.slice(Math.max(0, at - below(200)));
    case 6: return text.slice(0, at) + pick(['[', '{"a":', '[[[[']).repeat(1 + below(20_000)) + text.slice(at);
    default: return mutateText(mutateText(text));
  }
}

/** Edits of bytes. */
function mutateBytes(bytes: Uint8Array): Uint8Array {
  const copy = new Uint8Array(bytes);
  const at = below(Math.max(copy.length, 1));
  switch (below(6)) {
    case 0: copy[at]! ^= 1 << below(8); return copy;
    case 1: for (let k = 0; k <= below(8); k++) copy[below(copy.length)] = below(256); return copy;
    case 2: return copy.slice(0, at);
    case 3: return Uint8Array.from([...copy.subarray(0, Math.min(at, 4096)), ...copy.subarray(at)]);
    case 4: copy.copyWithin(at, below(copy.length), below(copy.length)); return copy;
    default: { const longer = new Uint8Array(copy.length + 1 + below(64)); longer.set(copy); return longer; }
  }
}

/** The header as text, changed, with a length that fits or does not. */
function mutateSafetensors(bytes: Uint8Array): Uint8Array {
  if (below(3) === 0 || bytes.length < 16) return mutateBytes(bytes);
  const length = Math.min(Number(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true)), bytes.length - 8);
  const header = new TextEncoder().encode(mutateText(new TextDecoder().decode(bytes.subarray(8, 8 + length))));
  const out = new Uint8Array(8 + header.length + bytes.length - 8 - length);
  new DataView(out.buffer).setBigUint64(0, below(20) ? BigInt(header.length) : BigInt(pick([0, 1, length, 2 ** 32, 2 ** 53])), true);
  out.set(header, 8);
  out.set(bytes.subarray(8 + length), 8 + header.length);
  return out;
}

// --- What a file may do ----------------------------------------------------------------------------------------------

/** Every tensor against the header as this file reads it, the plainest way. */
async function checkTensors(store: TensorStore, file: Uint8Array): Promise<void> {
  const length = Number(new DataView(file.buffer, file.byteOffset).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(file.subarray(8, 8 + length))) as Record<string, { dtype: string; shape: number[]; data_offsets: [number, number] }>;
  delete header['__metadata__'];
  if (Object.keys(header).length !== store.tensors.size) throw new Error(`${store.tensors.size} tensors of ${Object.keys(header).length}`);
  for (const [name, info] of store.tensors) {
    const { dtype, shape, data_offsets: [from, to] } = header[name]!;
    const expected = file.subarray(8 + length + from, 8 + length + to);
    const raw = await store.readRaw(name);
    if (info.dtype !== dtype || String(info.shape) !== String(shape) || Buffer.compare(raw, expected) !== 0) throw new Error(`tensor ${name} is not what the header says`);
    const elements = shape.reduce((a, b) => a * b, 1);
    const values = await store.readF32(name);
    if (values.length !== elements) throw new Error(`tensor ${name}: ${values.length} numbers of ${elements}`);
    if (dtype === 'F32' && Buffer.compare(new Uint8Array(values.buffer, values.byteOffset, values.byteLength), expected) !== 0) throw new Error(`tensor ${name}: its numbers are others`);
  }
}

const wholeUNet = golden('unet2d_class_cond', 'config.json').toString();
const unetWeights = golden('unet2d_class_cond', readdirSync(path.join(root, 'tests', 'goldens', 'unet2d_class_cond')).find((name) => name.endsWith('.safetensors') && !name.startsWith('io'))!);

/** A model as a pipeline opens it, up to the first byte of GPU memory. */
async function openModel(json: string, weights: Uint8Array): Promise<void> {
  const config = parseUNet2DConfig(JSON.parse(json), 'config.json');
  const parameters = new Parameters(new Graph());
  const ctx = { graph: parameters.graph, parameters };
  const side = 2 ** config.block_out_channels.length;
  unet2d(ctx, config, unet2dInputs(ctx, config, [1, side, side]));
  const store = await openSafetensors(bytesSource(weights, 'model.safetensors'));
  const names = matchCheckpoint(store, new Map([...parameters.specs.values()].map((s) => [s.name, [...s.shape]])));
  await checkTensors(store, weights);
  if (names.size !== parameters.specs.size) throw new Error(`${names.size} weights of ${parameters.specs.size}`);
}

const json = (text: string): unknown => {
  try {
    return JSON.parse(text);
  } catch (e) {
    throw new BruitError('config', 'not JSON', { cause: e });
  }
};

interface Kind {
  readonly name: string;
  readonly file: Uint8Array;
  mutate(file: Uint8Array): Uint8Array;
  read(file: Uint8Array): Promise<void> | void;
}

const text = (name: string, file: Uint8Array, read: (text: string) => unknown): Kind => ({
  name,
  file,
  mutate: (bytes) => new TextEncoder().encode(mutateText(new TextDecoder().decode(bytes))),
  read: async (bytes) => void (await read(new TextDecoder().decode(bytes))),
});

const small = writeSafetensors(
  [
    { name: 'a.weight', dtype: 'F32', shape: [3, 5], data: Float32Array.from({ length: 15 }, (_, i) => i / 7) },
    { name: 'b', dtype: 'F16', shape: [4], data: Float32Array.of(1, 2, 3, 4) },
    { name: 'c', dtype: 'BF16', shape: [2, 1, 2], data: Float32Array.of(1, 2, 3, 4) },
    { name: 'd', dtype: 'I64', shape: [2], data: Int32Array.of(5, 6) },
    { name: 'e', dtype: 'U8', shape: [], data: Uint8Array.of(9) },
    { name: 'none', dtype: 'F32', shape: [0, 4], data: new Float32Array(0) },
  ],
  { format: 'pt', parameters: '{"seed":1}' },
);
const picture = encodePng({ width: 19, height: 13, channels: 3, data: Uint8Array.from({ length: 19 * 13 * 3 }, (_, i) => i) }, { parameters: 'x' });
const jpeg = Buffer.from('/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAMCAgICAgMCAgIDAwMDBAYEBAQEBAgGBgUGCQgKCgkICQkKDA8MCgsOCwkJDRENDg8QEBEQCgwSExIQEw8QEBD/wAALCAABAAEBAREA/8QAFAABAAAAAAAAAAAAAAAAAAAACf/EABQQAQAAAAAAAAAAAAAAAAAAAAD/2gAIAQEAAD8AVN//2Q==', 'base64');
const schedulers = Object.values(JSON.parse(golden('schedulers', 'cases.json').toString()) as Record<string, { class: string; config: object }>).map((c) => JSON.stringify({ _class_name: c.class, ...c.config }));
const recipe = readFileSync(path.join(root, 'recipes', 'digits.json'));
const trainerState = Buffer.from(JSON.stringify({ step: 12, counters: [12, 12, 12, 0], control: [1e-3, 1, 1, 0.9, 1, 1, 1, 0], microStep: 12, loader: { epoch: 0, batch: 12 } }));

const kinds: Kind[] = [
  { name: 'safetensors', file: small, mutate: mutateSafetensors, read: async (file) => checkTensors(await openSafetensors(bytesSource(file, 'x.safetensors')), file) },
  { name: 'a model', file: unetWeights, mutate: mutateSafetensors, read: (file) => openModel(wholeUNet, file) },
  text('UNet2DModel with its weights', Buffer.from(wholeUNet), (t) => openModel(JSON.stringify(json(t)), unetWeights)),
  text('an index', Buffer.from(JSON.stringify({ metadata: {}, weight_map: { 'a.weight': 'one', b: 'one', c: 'one', d: 'one', e: 'one', none: 'one' } })), async (t) => checkTensors(await openSharded(bytesSource(Buffer.from(t), 'i.json'), async () => bytesSource(small, 'one')), small)),
  text('UNet2DConditionModel', golden('unet2d_condition_sd1_tiny', 'config.json'), (t) => parseUNet2DConditionConfig(json(t))),
  text('AutoencoderKL', golden('autoencoder_kl_tiny', 'config.json'), (t) => parseAutoencoderKLConfig(json(t))),
  text('CLIPTextModel', golden('clip_text_tiny', 'config.json'), (t) => parseCLIPTextConfig(json(t))),
  text('CLIPVisionModel', golden('clip_vision_with_projection', 'config.json'), (t) => parseCLIPVisionConfig(json(t))),
  text('T5EncoderModel', golden('t5_encoder_tiny', 'config.json'), (t) => parseT5Config(json(t))),
  text('Transformer2DModel', golden('dit_tiny', 'config.json'), (t) => parseTransformer2DConfig(json(t))),
  text('PriorTransformer', golden('prior_transformer_tiny', 'config.json'), (t) => parsePriorTransformerConfig(json(t))),
  ...schedulers.filter((_, i) => i % 5 === 0).map((config) => text('a scheduler', Buffer.from(config), (t) => {
    const program = createSampler(parseSchedulerConfig(t), { numInferenceSteps: 5 });
    if (!(program.steps.length > 0)) throw new Error('a scheduler without steps');
  })),
  text('a recipe', recipe, (t) => parseTrainConfig(json(t), 'recipe.json')),
  text('trainer_state.json', trainerState, (t) => parseTrainerState(t, 'trainer_state.json')),
  { name: 'PNG', file: picture, mutate: mutateBytes, read: (file) => void decodeImage(file, 'x.png') },
  { name: 'JPEG', file: jpeg, mutate: mutateBytes, read: (file) => void decodeImage(file, 'x.jpg') },
];

// --- The run ---------------------------------------------------------------------------------------------------------

const counts = { files: 0, accepted: 0, refused: 0 };
let slowest = { kind: '', milliseconds: 0 };
let largest = 0;
/** Peak memory before mutations, when everything has been loaded and compiled once. */
let warm = 0;
for (const kind of kinds) await kind.read(kind.file);
while (counts.files < count) {
  const kind = kinds[counts.files % kinds.length]!;
  let file = kind.mutate(kind.file);
  while (below(4) === 0 && file.length) file = kind.mutate(file.length > 16 ? file : kind.file);
  largest = Math.max(largest, file.length);
  // Found here by whoever ends this process because it hangs.
  writeFileSync(current, `${kind.name} ${counts.files}\n${Buffer.from(file.subarray(0, 65_536)).toString('base64')}\n`);
  const start = performance.now();
  try {
    await kind.read(file);
    counts.accepted++;
  } catch (error) {
    if (!(error instanceof BruitError)) {
      console.log(JSON.stringify({ failed: kind.name, error: error instanceof Error ? error.stack : String(error), number: counts.files, file: Buffer.from(file.subarray(0, 4000)).toString('base64') }));
      process.exit(1);
    }
    counts.refused++;
  }
  const milliseconds = performance.now() - start;
  if (milliseconds > slowest.milliseconds) slowest = { kind: kind.name, milliseconds };
  // Garbage would hide what a file needs.
  if (counts.files % 10 === 0) globalThis.gc!();
  if (++counts.files === Math.min(200, Math.ceil(count / 2))) warm = process.resourceUsage().maxRSS;
}
console.log(JSON.stringify({ ...counts, slowest, largest, growth: (process.resourceUsage().maxRSS - warm) * 1024 }));
