/**
 * How time grows with batch, pixels and steps: npm run bench:growth [-- OUT.md]. Twice the work may take twice the time and not much more; attention's work is quadratic in
 * pixels by nature, so rows are compared by their flops. Prints a Markdown table; exits with 1 where a row takes over a fifth more time for its work than the one before.
 */
import { writeFile } from 'node:fs/promises';
import { Engine } from '../src/engine/device';
import { directory } from '../src/node/directory';
import { createNodeGPU, requestNodeAdapter } from '../src/node/gpu';
import { DDPMPipeline } from '../src/pipelines/ddpm';
import { setup, unetWeights } from './ours.mjs';
import { unetWeightValues } from './workloads.mjs';

/** Least milliseconds of a few runs; of many short ones, which a busy machine may all hold up otherwise. */
async function time(run) {
  await run();
  let least = Infinity;
  const begin = performance.now();
  for (let i = 0; i < 4 || (i < 12 && performance.now() - begin < 4000); i++) {
    const start = performance.now();
    await run();
    least = Math.min(least, performance.now() - start);
  }
  return least;
}

const gpu = createNodeGPU();
const adapter = await requestNodeAdapter(gpu);
const { maxBufferSize, maxStorageBufferBindingSize } = adapter.limits;
const race = await setup({ requestDevice: ({ requiredFeatures }) => adapter.requestDevice({ requiredFeatures, requiredLimits: { maxBufferSize, maxStorageBufferBindingSize } }) });
const weights = unetWeightValues(unetWeights());

async function unet(batch, size) {
  const x = { shape: [batch, 3, size, size], data: new Float32Array(batch * 3 * size * size).fill(0.5) };
  const row = await race.unet({ name: 'growth', inputs: { x, t: { shape: [batch], data: new Float32Array(batch).fill(500) } }, weights });
  const ms = await time(() => row.run(1));
  row.destroy();
  return { what: `U-Net, batch ${batch}, ${size}x${size}`, work: row.flops, ms };
}

const engine = await Engine.create({ gpu });
const pipeline = await DDPMPipeline.fromFolder(engine, directory('models/digits'));

async function digits(count, steps) {
  const sampler = await pipeline.createSampler({ labels: Array.from({ length: count }, (_, i) => i % 10), steps });
  const ms = await time(() => sampler.run());
  sampler.destroy();
  return { what: `digits, ${count} images, ${steps} steps`, work: count * steps, ms };
}

const groups = [
  [1, 2, 4, 8].map((batch) => () => unet(batch, 32)),
  [16, 32, 64].map((size) => () => unet(1, size)),
  [1, 2, 4, 8, 16].map((count) => () => digits(count, 10)),
  [5, 10, 20, 40].map((steps) => () => digits(2, steps)),
];
const lines = ['| | work | ms | ms for the first row\'s work |', '|---|--:|--:|--:|'];
for (const group of groups) {
  const rows = [];
  for (const measure of group) {
    const row = await measure();
    const first = rows[0] ?? row;
    const last = rows[rows.length - 1] ?? row;
    const work = row.work / first.work;
    lines.push(`| ${row.what} | ${work.toFixed(2)} | ${row.ms.toFixed(1)} | ${(row.ms / work).toFixed(1)} |`);
    if (row.ms / row.work > (1.2 * last.ms) / last.work) process.exitCode = 1;
    rows.push(row);
  }
}
const text = `${adapter.info.description || adapter.info.vendor}: least of four runs or more\n\n${lines.join('\n')}\n`;
console.log(text);
const [out] = process.argv.slice(2);
if (out) await writeFile(out, text);
pipeline.destroy();
engine.destroy();
process.exit();
