/**
 * Judges generated digits: `npm run judge -- samples.safetensors [--json] [--seed N]`.
 * Exit code 0 if they pass, 1 if they do not, 2 for bad input.
 */
import { parseArgs } from 'node:util';
import { Engine } from '../src/engine/device';
import { BruitError, check } from '../src/engine/errors';
import { openTensorFile } from '../src/node/file_source';
import { createNodeGPU } from '../src/node/gpu';
import { loadMnist } from '../src/node/mnist';
import { Progress } from '../src/node/progress';
import { loadJudge } from './classifier';
import { evaluate, limits, readSamples, type Verdict } from './evaluate';

const usage = 'usage: npm run judge -- samples.safetensors [--json] [--seed N]\nReads images [N,1,H,W] in [0,1] (28x28 or 32x32) and labels [N], as `bruit sample --out samples.safetensors` writes them.';

const percent = (share: number): string => `${(100 * share).toFixed(1)}%`;
const mark = (passed: boolean): string => (passed ? 'pass' : 'MISS');

function report(v: Verdict, metadata: Readonly<Record<string, string>>): string {
  return [
    `classifier  reads ${percent(Number(metadata['accuracy_held_back']))} of ${metadata['images_held_back']} real held-back digits`,
    `accuracy    ${percent(v.accuracy)} of ${v.images} samples are read as the label asked for (at least ${percent(limits.accuracy)}: ${mark(v.accuracy >= limits.accuracy)})`,
    `per digit   ${v.accuracyPerClass.map((share, digit) => `${digit}: ${share === null ? '-' : percent(share)}`).join('  ')}`,
    `Fréchet     ${v.frechetDistance.toPrecision(4)} from ${v.frechetImages} samples to the real training digits, ${v.frechetDistanceHeldBack.toPrecision(4)} from ${v.frechetImages} real held-back digits`,
    `ratio       ${v.ratio.toFixed(2)} (at most ${limits.ratio}: ${mark(v.ratio <= limits.ratio)})`,
    `verdict     ${mark(v.passed)}`,
  ].join('\n');
}

async function main(): Promise<number> {
  const { values, positionals } = parseArgs({ allowPositionals: true, options: { json: { type: 'boolean' }, seed: { type: 'string', default: '0' }, help: { type: 'boolean', short: 'h' } } });
  if (values.help) {
    process.stdout.write(`${usage}\n`);
    return 0;
  }
  check(positionals.length === 1, 'input', () => usage);
  const file = await openTensorFile(positionals[0]!);
  const samples = await readSamples(file).finally(() => file.close());
  const engine = await Engine.create({ gpu: createNodeGPU(), powerPreference: 'high-performance' });
  const judge = await loadJudge(engine);
  let progress: Progress | undefined;
  const verdict = await evaluate(judge, samples, await loadMnist(), (done, total) => (progress ??= new Progress({ total, label: 'judging', unit: 'image', json: values.json === true })).update(done), Number(values.seed));
  process.stdout.write(`${values.json ? JSON.stringify(verdict, null, 2) : report(verdict, judge.metadata)}\n`);
  judge.classifier.destroy();
  engine.destroy();
  return verdict.passed ? 0 : 1;
}

try {
  process.exitCode = await main();
} catch (error) {
  const known = error instanceof BruitError || (error as NodeJS.ErrnoException).code?.startsWith('ERR_PARSE_ARGS');
  process.stderr.write(`${known ? (error as Error).message : ((error as Error).stack ?? String(error))}\n`);
  process.exitCode = 2;
}
