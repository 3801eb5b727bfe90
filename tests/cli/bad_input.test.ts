/** Bad input of every command: one line, exit 2, and nothing written. */
import { mkdir, readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { goldenPath } from '../helpers/golden';
import { bruit, temporary } from './bruit';

const dir = await temporary();
await mkdir(join(dir, 'empty'));
await mkdir(join(dir, 'flux'));
const files = { 'flux/model_index.json': '{"_class_name": "FluxPipeline"}', 'bad.json': '{', 'taken.png': 'a picture', 'text.png': 'no picture' };
for (const [name, text] of Object.entries(files)) await writeFile(join(dir, name), text);
const at = (name: string): string => join(dir, name);
const out = at('out.png');
const sd = ['--model', goldenPath('pipeline_sd_tiny'), '--prompt', 'a fox'];
const sample = (...args: string[]): string[] => ['sample', '--out', out, ...args];
/** Nobody can write there, the root user included. */
const nowhere = '/proc/nowhere';

const table: [args: string[], says: RegExp][] = [
  // outputs
  [['sample'], /'--out <path>' not specified/],
  [['sample', '--out', at('taken.png'), '--labels', '1'], /taken\.png exists already/],
  [['sample', '--out', join(nowhere, 'a.png'), '--labels', '1'], /cannot write to \/proc\/nowhere/],
  [['sample', '--out', join(at('taken.png'), 'a.png'), '--labels', '1'], /a part of the path is a file/],
  [sample('--labels', '1', '--previews', dir), /exists already and is not an empty folder/],
  // models
  [sample('--model', at('none')), /none: no model_index\.json/],
  [sample('--model', at('flux')), /names FluxPipeline, which bruit cannot run/],
  [sample('--model', 'hf:tiny'), /is called hf:OWNER\/NAME/],
  [sample('--model', 'http://127.0.0.1:1/m'), /cannot reach/],
  // numbers
  [sample('--labels', '1', '--steps', '0'), /'0' is invalid/],
  [sample('--labels', '1', '--n', '1e9'), /--n 1e9 must be from 1 to 1000000/],
  [sample('--labels', '1', '--seed', '-1'), /'-1' is invalid/],
  [sample('--labels', '9-3'), /is not a range from the smaller/],
  // options that the model does not take, or that contradict each other
  [sample('--labels', '1', '--prompt', 'a fox'), /DDPMPipeline takes no --prompt/],
  [sample(...sd, '--labels', '3', '--aesthetic-score', '6'), /StableDiffusionPipeline takes no --labels, --aesthetic-score/],
  [sample('--model', goldenPath('pipeline_unclip_tiny'), '--prompt', 'a', '--steps', '3'), /UnCLIPPipeline takes no --steps or --num-inference-steps/],
  [sample(...sd.slice(0, 2)), /needs --prompt/],
  [sample(...sd, '--height', '32'), /--height and --width together/],
  [sample(...sd, '--mask', at('text.png')), /--mask needs the --image/],
  [sample(...sd, '--strength', '0.5'), /--strength needs an --image/],
  [sample(...sd, '--negative-prompt', 'a', '--negative-prompt', 'b'), /2 times for 1 prompts/],
  [sample(...sd, '--controlnet', goldenPath('pipeline_controlnet_tiny', 'controlnet')), /0 times for 1 times --controlnet/],
  [sample('--labels', '1', '--rng', 'torch-cpu', '--offset', '2'), /--offset has no meaning with --rng/],
  [sample('--labels', '1', '--preview-decoder', 'x'), /needs --previews/],
  // files
  [sample(...sd, '--image', at('text.png')), /neither a PNG nor a JPEG/],
  [sample(...sd, '--lora', at('none.safetensors:0.5')), /cannot open .*none\.safetensors/],
  // other commands
  [['train', at('bad.json'), '--out', at('run')], /bad\.json is not JSON/],
  [['train', 'recipes/digits.json', '--out', at('taken.png')], /cannot write to .*taken\.png: a part of the path is a file/],
  [['train', 'recipes/digits.json', '--out', nowhere], /cannot write to/],
  [['train', 'recipes/digits.json', '--out', at('run'), '--resume', '--overwrite'], /give one of them/],
  [['verify', at('empty')], /is not a reference case/],
  [['verify', goldenPath('unet2d_class_cond'), '--out', nowhere], /cannot write to/],
  [['inspect', at('flux')], /none of whose models is known/],
  [['inspect', goldenPath('pipeline_sd_tiny'), '--filter', 'x'], /are for files of tensors/],
  [['inspect', goldenPath('pipeline_sd_tiny'), '--height', '33', '--width', '32'], /must be multiples of 2/],
  [['info', 'extra'], /too many arguments/],
  [['export', at('empty'), '--out', at('model')], /no recipe\.json beside it/],
  [['export', at('empty'), '--out', nowhere], /cannot write to/],
  [['tune', at('none')], /cannot read .*none/],
  [['bench', 'matmul', '--runs', '0'], /must be a whole number of at least 1/],
];

test('every mistake is one line that names it', { timeout: 240_000 }, async () => {
  const before = (await readdir(dir, { recursive: true })).sort();
  const wrong: string[] = [];
  const waiting = [...table];
  const worker = async (): Promise<void> => {
    for (let next = waiting.shift(); next; next = waiting.shift()) {
      const [args, says] = next;
      const { code, stdout, stderr } = await bruit(...args);
      if (code !== 2 || stdout !== '' || stderr.split('\n').length !== 2 || !says.test(stderr)) wrong.push(`bruit ${args.join(' ')}: exit ${code}, ${JSON.stringify(stdout + stderr)}; wanted ${says}`);
    }
  };
  await Promise.all([worker(), worker(), worker()]);
  expect(wrong).toEqual([]);
  expect((await readdir(dir, { recursive: true })).sort()).toEqual(before);
  for (const [name, text] of Object.entries(files)) expect(await readFile(at(name), 'utf8')).toBe(text);
});
