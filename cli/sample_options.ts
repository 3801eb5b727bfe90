/** The options of `bruit sample`: what they are called, and which kinds of pipelines take them. */
import { Option, type Command } from 'commander';
import { BruitError } from '../src/engine/errors';
import { torchDevices } from '../src/engine/torch_rng';
import { weightStorages, type WeightStorage } from '../src/model/weight_format';
import { schedulerNames, type SchedulerName } from '../src/pipelines/ddpm';
import { number, positiveInteger, wholeNumber } from './arguments';
import { shard, type Shard } from './shard';

type Pair = readonly [number, number];

export interface SampleOptions {
  readonly model?: string;
  readonly out: string;
  readonly overwrite?: boolean;
  readonly json?: boolean;
  readonly n?: number;
  readonly seed: number;
  readonly offset: number;
  readonly batch?: number;
  readonly rng: 'bruit' | (typeof torchDevices)[number];
  readonly keep?: boolean;
  readonly vaeTiling?: boolean;
  readonly weights: WeightStorage;
  readonly shard?: Shard;
  readonly previews?: string;
  readonly previewEvery: number;
  readonly previewDecoder?: string;

  readonly component?: string;
  readonly labels?: readonly number[];
  readonly numInferenceSteps?: number;
  readonly scheduler?: SchedulerName;
  readonly eta?: number;
  readonly guidanceScale?: number;
  readonly guidanceRescale?: number;
  readonly height?: number;
  readonly width?: number;
  readonly prompt?: readonly string[];
  readonly negativePrompt?: readonly string[];
  readonly promptWeighting?: 'a1111';
  readonly longPrompts?: boolean;
  readonly clipSkip?: number;
  readonly image?: readonly string[];
  readonly maskImage?: readonly string[];
  readonly strength?: number;
  readonly outputType?: 'latent';
  readonly controlnet?: readonly string[];
  readonly controlImage?: readonly string[];
  readonly controlnetConditioningScale?: readonly number[];
  readonly controlGuidanceStart?: readonly number[];
  readonly controlGuidanceEnd?: readonly number[];
  readonly guessMode?: boolean;
  readonly lora?: readonly string[];
  readonly originalInferenceSteps?: number;
  readonly denoisingStart?: number;
  readonly denoisingEnd?: number;
  readonly refiner?: string;
  readonly prompt_2?: readonly string[];
  readonly negativePrompt_2?: readonly string[];
  readonly originalSize?: Pair;
  readonly cropsCoordsTopLeft?: Pair;
  readonly targetSize?: Pair;
  readonly negativeOriginalSize?: Pair;
  readonly negativeCropsCoordsTopLeft?: Pair;
  readonly negativeTargetSize?: Pair;
  readonly aestheticScore?: number;
  readonly negativeAestheticScore?: number;
  readonly superResolution?: readonly string[];
  readonly noiseLevel?: number;
  readonly superResGuidanceScale?: number;
  readonly superResNumInferenceSteps?: number;
  readonly priorNumInferenceSteps?: number;
  readonly priorGuidanceScale?: number;
  readonly decoderNumInferenceSteps?: number;
  readonly decoderGuidanceScale?: number;
}

export type OptionName = keyof SampleOptions;

/** What every pipeline takes. */
const common: readonly OptionName[] = ['model', 'out', 'overwrite', 'json', 'n', 'seed', 'offset', 'batch', 'rng', 'previews', 'previewEvery', 'weights', 'shard'];

/** `3`, `0,4,7` or `0-9`, in any mixture. */
function labelList(text: string): number[] {
  return text.split(',').flatMap((part) => {
    const range = /^(\d+)-(\d+)$/.exec(part);
    if (range) {
      const [from, to] = [Number(range[1]), Number(range[2])];
      if (to < from || to - from >= 1e6) throw new BruitError('input', `--labels ${text}: ${part} is not a range from the smaller to the larger number, of at most a million`);
      return Array.from({ length: to - from + 1 }, (_, i) => from + i);
    }
    if (!/^\d+$/.test(part)) throw new BruitError('input', `--labels ${text}: "${part}" is neither a number nor a range such as 0-9`);
    return [Number(part)];
  });
}

function pair(text: string): Pair {
  const match = /^(\d+)[,x](\d+)$/.exec(text);
  if (!match) throw new BruitError('input', `${text}: two whole numbers are wanted, height and width (or top and left), such as 1024,1024`);
  return [Number(match[1]), Number(match[2])];
}

const repeated = <T>(parse: (text: string) => T) => (text: string, before: readonly T[] | undefined): readonly T[] => [...(before ?? []), parse(text)];
const texts = repeated((text) => text);
const numbers = repeated(number);

/** Images computed at once, and pixels of a side, beyond any device. */
const sane = (least: number, most: number, what: string) => (text: string): number => {
  const value = positiveInteger(text);
  if (value < least || value > most) throw new BruitError('input', `${what} ${text} must be from ${least} to ${most}`);
  return value;
};

export function addSampleOptions(command: Command): Command {
  return command
    .option('--model <dir|url|hf:name>', "folder in diffusers' layout, its address, or hf:OWNER/NAME[@REVISION][/SUBFOLDER]; a bundled model by default: scenes of digits with --prompt, digits without")
    .requiredOption('--out <path>', 'a grid as .png, tensors as .safetensors, or a folder of PNGs')
    .option('--overwrite', 'replace existing output')
    .option('--json', 'progress as JSON lines on stderr, the result as JSON on stdout')
    .option('--n <count>', 'number of images; prompts, labels and images are repeated up to it, one each by default', sane(1, 1e6, '--n'))
    .option('--seed <number>', 'image i depends on the seed and i alone', wholeNumber, 0)
    .option('--offset <number>', 'number of the first image: parts of a large job can be computed apart', wholeNumber, 0)
    .option('--batch <count>', 'images computed at once', sane(1, 65536, '--batch'))
    .addOption(new Option('--rng <kind>', "whose random numbers: PyTorch's come in the order in which diffusers draws, all images at once").choices(['bruit', ...torchDevices]).default('bruit'))
    .option('--shard <index/count>', 'make one part of the job, from 0/COUNT to COUNT-1/COUNT: all parts together are what one machine makes', shard)
    .addOption(new Option('--weights <format>', 'how weights lie in GPU memory: as the checkpoint has them, or in one format (int8 and int4 round)').choices(weightStorages).default('auto'))
    .option('--vae-tiling', 'decode large latents in tiles, in bounded memory; without it, only where the device needs it')
    .option('--keep', 'keep weights in GPU memory from batch to batch')
    .option('--previews <dir>', 'write the predicted images of every step there, as 00000-0007.png')
    .option('--preview-every <steps>', 'only of every so many steps', positiveInteger, 1)
    .option('--preview-decoder <dir|url|hf:name>', 'an AutoencoderTiny for them; otherwise a linear approximation of the decoder')
    .optionsGroup('All pipelines but UnCLIP:')
    .option('--steps, --num-inference-steps <count>', "denoising steps; the pipeline's own number by default", sane(1, 10000, '--steps'))
    .addOption(new Option('--scheduler <name>', "instead of the model's own").choices(Object.keys(schedulerNames)))
    .option('--guidance, --guidance-scale <scale>', "classifier-free guidance, 1 for none; the model's own by default", number)
    .option('--eta <number>', 'DDIM: 0 deterministic, 1 as noisy as DDPM', number)
    .option('--height <pixels>', 'of the images', sane(1, 16384, '--height'))
    .option('--width <pixels>', 'of the images', sane(1, 16384, '--width'))
    .optionsGroup('Classes (DDPM, DDIM, DiT):')
    .option('--labels <list>', 'classes to draw: 3 or 0,4,7 or 0-9', labelList)
    .option('--component <name>', 'sub-folder of the weights (a training run has unet and unet_ema); unet by default')
    .optionsGroup('Text:')
    .option('--prompt <text>', 'what to draw; may be given several times', texts)
    .option('--negative-prompt <text>', 'what to avoid; once, or as often as --prompt', texts)
    .optionsGroup('Stable Diffusion, SDXL, LCM:')
    .addOption(new Option('--prompt-weighting <syntax>', 'read (word:1.3) and [word]; prompts may be of any length').choices(['a1111']))
    .option('--long-prompts', 'prompts of more than 77 tokens in several windows instead of cut')
    .option('--clip-skip <layers>', 'layers of the text encoder to leave out at its end', wholeNumber)
    .option('--guidance-rescale <factor>', 'Lin et al. 2023: 0.7 for models with zero terminal SNR', number)
    .option('--image <file>', 'PNG or JPEG to begin with, or to be painted into (also: UnCLIP image variations)', texts)
    .option('--mask, --mask-image <file>', 'white is to be painted, black kept', texts)
    .addOption(new Option('--output-type <kind>', 'latents instead of images, as .safetensors; --image reads them').choices(['latent']))
    .option('--strength <number>', 'how far to leave the image, 0 to 1', number)
    .option('--controlnet <dir|url|hf:name>', 'a ControlNet; may be given several times', texts)
    .option('--control-image <file>', 'what it follows, one for each', texts)
    .option('--controlnet-conditioning-scale <number>', 'its strength, one for each or for all', numbers)
    .option('--control-guidance-start <part>', 'part of the steps after which it acts', numbers)
    .option('--control-guidance-end <part>', 'part of the steps after which it no longer acts', numbers)
    .option('--guess-mode', 'follow the control image even without a prompt')
    .option('--lora <file[:scale]>', 'low-rank weights; may be given several times', texts)
    .option('--original-inference-steps <count>', 'LCM: steps that the model was distilled with', positiveInteger)
    .optionsGroup('SDXL:')
    .option('--refiner <dir|url|hf:name>', 'the model for the last part of the steps, from --denoising-end on (0.8 by default)')
    .option('--denoising-end <part>', 'stop after this part of the steps, more than 0 and less than 1', number)
    .option('--denoising-start <part>', 'leave this part out: --image holds the latents of a --denoising-end', number)
    .option('--prompt-2 <text>', 'for the second text encoder; --prompt by default', texts)
    .option('--negative-prompt-2 <text>', 'for the second text encoder', texts)
    .option('--original-size <h,w>', 'size that the image is said to have had', pair)
    .option('--crops-coords-top-left <top,left>', 'cut that the image is said to be', pair)
    .option('--target-size <h,w>', 'size that the image is said to have', pair)
    .option('--negative-original-size <h,w>', 'the same of what is avoided', pair)
    .option('--negative-crops-coords-top-left <top,left>', 'the same of what is avoided', pair)
    .option('--negative-target-size <h,w>', 'the same of what is avoided', pair)
    .option('--aesthetic-score <number>', 'refiner: 6 by default', number)
    .option('--negative-aesthetic-score <number>', 'refiner: 2.5 by default', number)
    .optionsGroup('DeepFloyd IF and UnCLIP:')
    .option('--super-resolution <dir|url|hf:name>', 'IF: the next stage of the cascade; may be given several times', texts)
    .option('--noise-level <step>', 'IF: noise on what a next stage enlarges, 250 by default', wholeNumber)
    .option('--super-res-guidance-scale <scale>', 'IF: guidance of the next stages', number)
    .option('--super-res-num-inference-steps <count>', 'steps of super-resolution', positiveInteger)
    .option('--prior-num-inference-steps <count>', 'UnCLIP', positiveInteger)
    .option('--prior-guidance-scale <scale>', 'UnCLIP', number)
    .option('--decoder-num-inference-steps <count>', 'UnCLIP', positiveInteger)
    .option('--decoder-guidance-scale <scale>', 'UnCLIP', number);
}

/** @throws BruitError `input` naming options that were given and that this kind of pipeline does not take. */
export function checkTaken(command: Command, kind: string, taken: readonly OptionName[]): void {
  const given = command.options.filter((o) => command.getOptionValueSource(o.attributeName()) === 'cli');
  const strange = given.filter((o) => !common.includes(o.attributeName() as OptionName) && !taken.includes(o.attributeName() as OptionName));
  if (strange.length) throw new BruitError('input', `${kind} takes no ${strange.map((o) => o.flags.replace(/ <.*/, '').replace(', ', ' or ')).join(', ')}; \`bruit help sample\` says which pipelines do`);
}
