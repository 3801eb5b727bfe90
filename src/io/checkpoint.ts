import { closest, distance } from 'fastest-levenshtein';
import { BruitError } from '../engine/errors';
import { currentName, TIED_NAMES } from './names';
import type { TensorStore } from './safetensors';

export interface MatchOptions {
  /** The model's name for a tensor of the file, or null to leave that tensor aside. Default: {@link currentName}. */
  rename?: (nameInFile: string) => string | null;
}

/** Names listed per kind of mistake; the counts say how many there are. */
const LISTED = 10;

/**
 * Pairs a model's parameters with the tensors of a file, all or nothing; reads no tensor data.
 * @param expected The model's parameters: name → shape.
 * @returns name of parameter → name of the tensor in the file, in the order of `expected`.
 * @throws BruitError `checkpoint`: one error that lists everything missing, unexpected and mis-shaped.
 */
export function matchCheckpoint(store: TensorStore, expected: ReadonlyMap<string, readonly number[]>, options: MatchOptions = {}): Map<string, string> {
  const rename = options.rename ?? currentName;
  const found = new Map<string, string>();
  const unexpected: string[] = [];
  const twice: string[] = [];
  const tied = new Map<string, string>();
  for (const inFile of store.tensors.keys()) {
    const name = rename(inFile);
    if (name === null) continue;
    const other = found.get(name);
    const first = TIED_NAMES[name];
    if (first !== undefined && !expected.has(name) && expected.has(first)) tied.set(first, inFile);
    else if (!expected.has(name)) unexpected.push(inFile);
    else if (other !== undefined) twice.push(`${name}: both ${other} and ${inFile}`);
    else found.set(name, inFile);
  }
  for (const [name, inFile] of tied) if (!found.has(name)) found.set(name, inFile);
  const mapping = new Map<string, string>();
  const missing: string[] = [];
  const misshaped: string[] = [];
  for (const [name, shape] of expected) {
    const inFile = found.get(name);
    if (inFile === undefined) {
      missing.push(name);
      continue;
    }
    mapping.set(name, inFile);
    const actual = store.tensors.get(inFile)!.shape;
    if (actual.length !== shape.length || actual.some((n, i) => n !== shape[i])) {
      misshaped.push(`${inFile} is [${actual}], the model wants [${shape}]${sameButForOnes(actual, shape)}`);
    }
  }
  if (missing.length + unexpected.length + misshaped.length + twice.length === 0) return mapping;

  const section = (title: string, lines: string[], show = (line: string) => line): string =>
    lines.length === 0 ? '' : `\n${title} (${lines.length}):${lines.slice(0, LISTED).map((line) => `\n  ${show(line)}`).join('')}${lines.length > LISTED ? `\n  … and ${lines.length - LISTED} more` : ''}`;
  const hint = hintFor(store, expected, missing);
  throw new BruitError(
    'checkpoint',
    `${store.name}: its ${store.tensors.size} tensors do not fit the model's ${expected.size} parameters` +
      section('missing', missing, (name) => withSuggestion(name, unexpected)) +
      section('unexpected', unexpected) +
      section('wrong shape', misshaped) +
      section('given twice', twice) +
      (hint && `\n${hint}`),
  );
}

function withSuggestion(name: string, unexpected: readonly string[]): string {
  if (unexpected.length === 0) return name;
  const near = closest(name, unexpected);
  return distance(name, near) <= name.length / 3 ? `${name} (the file has ${near}: is that it?)` : name;
}

function sameButForOnes(a: readonly number[], b: readonly number[]): string {
  const [short, long] = a.length < b.length ? [a, b] : [b, a];
  const same = short.length === 2 && long.length === 4 && short.every((n, i) => n === long[i]) && long[2] === 1 && long[3] === 1;
  return same ? ' (a 1x1 convolution against a linear layer: see use_linear_projection in config.json)' : '';
}

/** What a file is, told by its names; the first row that matches the file, and not the model, speaks. */
const FAMILIES: { mark: RegExp; hint: string }[] = [
  { mark: /(^|[._])lora([._]|$)/i, hint: 'This looks like a LoRA: it holds changes to a base model, whose own weights must be loaded first.' },
  { mark: /^(model\.diffusion_model|first_stage_model|cond_stage_model)\./, hint: "This looks like a whole Stable Diffusion in its original layout (one file): convert it to diffusers' folders first." },
  { mark: /(^|\.)decoder\.up_blocks\./, hint: 'This looks like a VAE (AutoencoderKL).' },
  { mark: /(^|\.)text_model\./, hint: 'This looks like a CLIP text encoder.' },
  { mark: /(^|\.)vision_model\./, hint: 'This looks like a CLIP vision encoder.' },
  { mark: /(^|\.)encoder\.block\.\d+\.layer\./, hint: 'This looks like a T5 encoder.' },
  { mark: /^controlnet_/, hint: 'This looks like a ControlNet.' },
  { mark: /^down_blocks\..*\.attn2\./, hint: 'This looks like a text-conditioned U-Net (UNet2DConditionModel).' },
  { mark: /^(conv_in|down_blocks)\./, hint: 'This looks like a U-Net (UNet2DModel).' },
];

function hintFor(store: TensorStore, expected: ReadonlyMap<string, readonly number[]>, missing: string[]): string {
  const names = [...store.tensors.keys()];
  if (names.length === 0) return 'The file holds no tensors at all.';
  const prefix = commonPrefix(store, missing);
  if (prefix) return `The file puts ${JSON.stringify(prefix)} before the model's names: strip it, or pass a rename that does.`;
  const model = [...expected.keys()];
  return FAMILIES.find(({ mark }) => names.some((name) => mark.test(name)) && !model.some((name) => mark.test(name)))?.hint ?? '';
}

/** The prefix that turns most missing names into names of the file (`module.`, `unet.`, `_orig_mod.`), if there is one. */
function commonPrefix(store: TensorStore, missing: string[]): string | undefined {
  const first = missing[0];
  const candidate = first === undefined ? undefined : [...store.tensors.keys()].find((name) => name.endsWith(`.${first}`));
  if (candidate === undefined) return undefined;
  const prefix = candidate.slice(0, candidate.length - first!.length);
  return missing.filter((name) => store.tensors.has(prefix + name)).length * 2 > missing.length ? prefix : undefined;
}
