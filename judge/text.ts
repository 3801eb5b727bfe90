/**
 * Judges a text-to-image model of scenes: `npm run judge:text -- [MODEL] [--n N] [--steps N] [--guidance S] [--seed N] [--json] [--out FILE.png]`.
 * Prompts are captions that training never sees. Exit code 0 if enough pictures are as their prompts say, 1 if not, 2 for bad input.
 */
import { parseArgs } from 'node:util';
import { digitScenes, planScene, sceneSize } from '../src/data/scenes';
import { Engine } from '../src/engine/device';
import { BruitError, check } from '../src/engine/errors';
import { encodePng, imageGrid } from '../src/io/png';
import { directory } from '../src/node/directory';
import { writeFileAtomic } from '../src/node/files';
import { createNodeGPU } from '../src/node/gpu';
import { loadMnist } from '../src/node/mnist';
import { Progress } from '../src/node/progress';
import { StableDiffusionPipeline } from '../src/pipelines/stable_diffusion';
import { loadJudge } from './classifier';
import { judgeScenes, sceneLimit, type SceneVerdict } from './scenes';

const usage = 'usage: npm run judge:text -- [MODEL] [--n 300] [--steps 25] [--guidance 2] [--seed 0] [--json] [--out samples.png]\nMODEL is the folder of a StableDiffusionPipeline trained on scenes, models/scenes by default.';
const percent = (share: number): string => `${(100 * share).toFixed(1)}%`;
/** Images computed at once. */
const batch = 50;

function report(v: SceneVerdict, real: SceneVerdict): string {
  const style = (x: SceneVerdict) => `thin ${x.strokeWidth.thin.toFixed(2)}, plain ${x.strokeWidth.plain.toFixed(2)}, thick ${x.strokeWidth.thick.toFixed(2)} pixels; slanted ${x.slant.slanted.toFixed(2)}, plain ${x.slant.plain.toFixed(2)}`;
  return [
    `real      ${percent(real.accuracy)} of ${real.scenes} scenes of held-back digits are read right`,
    `accuracy  ${percent(v.accuracy)} of ${v.scenes} held-back prompts are answered right (at least ${percent(sceneLimit)}: ${v.accuracy >= sceneLimit ? 'pass' : 'MISS'})`,
    `single    ${percent(v.single)}    pairs ${percent(v.pair)}    number of digits ${percent(v.count)}`,
    `strokes   ${style(v)}`,
    `of real   ${style(real)}`,
  ].join('\n');
}

async function main(): Promise<number> {
  const options = { n: { type: 'string', default: '300' }, steps: { type: 'string', default: '25' }, guidance: { type: 'string', default: '2' }, seed: { type: 'string', default: '0' }, json: { type: 'boolean' }, out: { type: 'string' }, help: { type: 'boolean', short: 'h' } } as const;
  const { values, positionals } = parseArgs({ allowPositionals: true, options });
  if (values.help) {
    process.stdout.write(`${usage}\n`);
    return 0;
  }
  const [n, steps, guidance, seed] = [values.n, values.steps, values.guidance, values.seed].map(Number) as [number, number, number, number];
  check(positionals.length <= 1 && [n, steps].every((x) => Number.isInteger(x) && x > 0) && Number.isFinite(guidance) && Number.isInteger(seed) && seed >= 0, 'input', () => usage);
  const engine = await Engine.create({ gpu: createNodeGPU(), powerPreference: 'high-performance' });
  const { classifier } = await loadJudge(engine);
  const pipeline = await StableDiffusionPipeline.fromFolder(engine, directory(positionals[0] ?? 'models/scenes'), { keep: true });
  const plans = Array.from({ length: n }, (_, i) => planScene(seed, i, true));
  const size = sceneSize * sceneSize;
  const images = new Float32Array(n * size);
  const progress = new Progress({ total: n, label: 'drawing', unit: 'image', json: values.json === true });
  for (let first = 0; first < n; first += batch) {
    const prompt = plans.slice(first, first + batch).map((p) => p.caption);
    const { data } = await pipeline.generate({ prompt, num_inference_steps: steps, guidance_scale: guidance, seed, sampleOffset: first });
    images.set(data, first * size);
    progress.update(first + prompt.length);
  }
  const verdict = await judgeScenes(classifier, images, plans);
  const scenes = await digitScenes((await loadMnist()).heldBack, { count: 300, seed, heldBack: true });
  const real = new Float32Array(scenes.length * size);
  for (let i = 0; i < scenes.length; i++) real.set((await scenes.get(i)).image.map((v) => (v + 1) / 2), i * size);
  const realVerdict = await judgeScenes(classifier, real, scenes.plans);
  if (values.out) await writeFileAtomic(values.out, encodePng(imageGrid({ data: images, shape: [n, 1, sceneSize, sceneSize] }, { columns: 20 })));
  process.stdout.write(`${values.json ? JSON.stringify({ ...verdict, read: undefined, real: realVerdict.accuracy }, null, 2) : report(verdict, realVerdict)}\n`);
  classifier.destroy();
  pipeline.destroy();
  engine.destroy();
  return verdict.accuracy >= sceneLimit ? 0 : 1;
}

try {
  process.exitCode = await main();
} catch (error) {
  const known = error instanceof BruitError || (error as NodeJS.ErrnoException).code?.startsWith('ERR_PARSE_ARGS');
  process.stderr.write(`${known ? (error as Error).message : ((error as Error).stack ?? String(error))}\n`);
  process.exitCode = 2;
}
