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

/** Rows of a group run in turns, so that they share whatever else the machine does. Least milliseconds of each: of a longer run, more is held up. */
const rounds = 8;

const gpu = createNodeGPU();
const adapter = await requestNodeAdapter(gpu);
const { maxBufferSize, maxStorageBufferBindingSize } = adapter.limits;
const race = await setup({ requestDevice: ({ requiredFeatures }) => adapter.requestDevice({ requiredFeatures, requiredLimits: { maxBufferSize, maxStorageBufferBindingSize } }) });
const weights = unetWeightValues(unetWeights());

async function unet(batch, size) {
  const x = { shape: [batch, 3, size, size], data: new Float32Array(batch * 3 * size * size).fill(0.5) };
  const row = await race.unet({ name: 'growth', inputs: { x, t: { shape: [batch], data: new Float32Array(batch).fill(500) } }, weights });
  return { what: `U-Net, batch ${batch}, ${size}x${size}`, work: row.flops, run: () => row.run(1), destroy: () => row.destroy() };
}

const engine = await Engine.create({ gpu });
const pipeline = await DDPMPipeline.fromFolder(engine, directory('models/digits'));

async function digits(count, steps) {
  const sampler = await pipeline.createSampler({ labels: Array.from({ length: count }, (_, i) => i % 10), steps });
  return { what: `digits, ${count} images, ${steps} steps`, work: count * steps, run: () => sampler.run(), destroy: () => sampler.destroy() };
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
  for (const make of group) rows.push({ ...(await make()), ms: Infinity });
  for (let round = 0; round <= rounds; round++) {
    for (const row of rows) {
      const start = performance.now();
      await row.run();
      if (round > 0) row.ms = Math.min(row.ms, performance.now() - start);
    }
  }
  const [first] = rows;
  rows.forEach((row, i) => {
    const work = row.work / first.work;
    lines.push(`| ${row.what} | ${work.toFixed(2)} | ${row.ms.toFixed(1)} | ${(row.ms / work).toFixed(1)} |`);
    const last = rows[Math.max(i - 1, 0)];
    if (row.ms / row.work > (1.2 * last.ms) / last.work) process.exitCode = 1;
    row.destroy();
  });
}
const text = `${adapter.info.description || adapter.info.vendor}: least of ${rounds} runs, the rows of a group in turns\n\n${lines.join('\n')}\n`;
console.log(text);
const [out] = process.argv.slice(2);
if (out) await writeFile(out, text);
pipeline.destroy();
engine.destroy();
process.exit();
