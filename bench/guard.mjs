/**
 * Regression guard: npm run bench:guard [-- --write]
 * Each kernel against the naive kernel of the same op in the same run, turn by turn. Fails when a ratio has fallen by more than 30% from the one in
 * guard.json for this adapter; `--write` puts today's there.
 */
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import attentionShader from './naive/attention.wgsl';
import convShader from './naive/conv2d.wgsl';
import groupNormShader from './naive/group_norm.wgsl';
import matmulShader from './naive/matmul.wgsl';
import { Engine } from '../src/engine/device';
import { Graph } from '../src/engine/graph';
import { attention } from '../src/engine/ops/attention';
import { conv2d } from '../src/engine/ops/conv2d';
import { groupNorm } from '../src/engine/ops/group_norm';
import { matmul } from '../src/engine/ops/matmul';
import { compile, tensorUsage } from '../src/engine/program';
import { numel } from '../src/engine/shape';
import { packParams, reflect } from '../src/engine/shader';
import { createNodeGPU } from '../src/node/gpu';

const ALLOWED = 0.7;
const ROUNDS = 12;
/** Milliseconds after which a row has had rounds enough. */
const BUDGET = 5000;

const rows = [
  {
    name: 'matmul 192³',
    shader: matmulShader,
    params: { m: 192, n: 192, k: 192 },
    inputs: { a: [192, 192], b: [192, 192] },
    invocations: 192 * 192,
    workgroup: 64,
    build: ({ a, b }) => matmul(a, b),
  },
  {
    name: 'conv 3×3, 1×32→32×32×32',
    shader: convShader,
    params: { n: 1, h: 32, w: 32, c: 32, k: 32, r: 3, s: 3, pad: 1 },
    inputs: { x: [1, 32, 32, 32], filter_: [3, 3, 32, 32] },
    invocations: 32 * 32 * 32,
    workgroup: 64,
    build: ({ x, filter_ }) => conv2d(x, filter_, { padding: 1 }),
  },
  {
    name: 'group norm + SiLU, 4×128×32×32',
    shader: groupNormShader,
    params: { n: 4, pixels: 1024, c: 128, groups: 32, eps: 1e-5 },
    inputs: { x: [4, 32, 32, 128], gamma: [128], beta: [128] },
    invocations: 4 * 32,
    workgroup: 8,
    build: ({ x, gamma, beta }) => groupNorm(x, gamma, beta, { groups: 32, eps: 1e-5, silu: true }),
  },
  {
    name: 'attention, 2 heads × 160 × 64',
    shader: attentionShader,
    params: { tokens: 160, heads: 2, scale: 1 / 8 },
    inputs: { q: [1, 160, 128], k: [1, 160, 128], v: [1, 160, 128] },
    invocations: 160 * 2,
    workgroup: 16,
    build: ({ q, k, v }) => attention(q, k, v, { heads: 2 }),
  },
];

/** Values between −1 and 1 without a pattern. */
function fill(length, seed) {
  let state = seed * 7919 + 1;
  return Float32Array.from({ length }, () => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) / 2 ** 31 - 1);
}

/** Our kernel and the naive one over the same inputs; each `run(n)` submits n times and waits. */
async function prepare(engine, row) {
  const { device } = engine;
  const graph = new Graph();
  const leaves = Object.fromEntries(Object.entries(row.inputs).map(([name, shape]) => [name, graph.input(name, shape)]));
  const y = row.build(leaves);
  const program = await compile(engine, graph, { outputs: [y], label: row.name });
  Object.entries(leaves).forEach(([name, leaf], i) => program.write(leaf, fill(numel(row.inputs[name]), i + 1)));

  const info = reflect('naive kernel', row.shader, 'forward');
  const uniform = new DataView(new ArrayBuffer(info.params.size));
  packParams(info, row.params, uniform, 0);
  const params = engine.createBuffer('naive params', info.params.size, 64 | 8); // UNIFORM | COPY_DST
  device.queue.writeBuffer(params, 0, uniform.buffer);
  const result = engine.createBuffer('naive result', y.bytes, tensorUsage);
  const views = { params: { buffer: params }, y: { buffer: result }, ...Object.fromEntries(Object.entries(leaves).map(([name, leaf]) => [name, program.view(leaf)])) };
  const pipeline = await engine.pipelines.get(info);
  const bindGroup = device.createBindGroup({ layout: pipeline.getBindGroupLayout(0), entries: [...info.bindings].map(([name, { binding }]) => ({ binding, resource: { buffer: views[name].buffer } })) });

  return {
    ours: async (n) => {
      program.run(n);
      await program.done();
    },
    naive: async (n) => {
      const encoder = device.createCommandEncoder();
      const pass = encoder.beginComputePass();
      pass.setPipeline(pipeline);
      pass.setBindGroup(0, bindGroup);
      for (let i = 0; i < n; i++) pass.dispatchWorkgroups(Math.ceil(row.invocations / row.workgroup));
      pass.end();
      device.queue.submit([encoder.finish()]);
      await device.queue.onSubmittedWorkDone();
    },
    outputs: async () => [await program.read(y), new Float32Array(await engine.readBuffer({ buffer: result, offset: 0 }, y.bytes))],
  };
}

/**
 * Milliseconds of each of `n` runs. A software adapter computes in threads of this process, so there it is their processor time: other programs can
 * take the machine away, but hardly add to that.
 */
async function time(run, n, software) {
  const start = software ? process.cpuUsage() : performance.now();
  await run(n);
  if (!software) return (performance.now() - start) / n;
  const { user, system } = process.cpuUsage(start);
  return (user + system) / 1000 / n;
}

/** Milliseconds of the naive kernel over those of ours: the least of a few turns each. Samples last equally long, so that both meet as much of other work. */
async function measure(kernels, software) {
  const repeats = Math.max(1, Math.round((await time(kernels.naive, 1, software)) / (await time(kernels.ours, 1, software))));
  const start = performance.now();
  let [naive, ours] = [Infinity, Infinity];
  for (let i = 0; i < ROUNDS && (i < 3 || performance.now() - start < BUDGET); i++) {
    naive = Math.min(naive, await time(kernels.naive, 1, software));
    ours = Math.min(ours, await time(kernels.ours, repeats, software));
  }
  return { naive, ours, ratio: naive / ours };
}

async function main(file, write) {
  const engine = await Engine.create({ gpu: createNodeGPU(), powerPreference: 'high-performance' });
  const { name: adapter, kind } = engine.profile;
  const committed = existsSync(file) ? JSON.parse(readFileSync(file, 'utf8')) : {};
  const known = committed[adapter] ?? {};
  const today = {};
  let fallen = 0;
  for (const row of rows) {
    const kernels = await prepare(engine, row);
    await kernels.ours(1);
    await kernels.naive(1);
    const [actual, expected] = await kernels.outputs();
    const worst = actual.reduce((most, v, i) => Math.max(most, Math.abs(v - expected[i])), 0) / expected.reduce((most, v) => Math.max(most, Math.abs(v)), 0);
    if (!(worst < 1e-4)) throw new Error(`${row.name}: ours and the naive kernel differ by ${worst} of the largest value`);
    const before = known[row.name];
    let result = await measure(kernels, kind === 'software');
    // A burst of other work may have hit ours alone: look again before saying so.
    for (let again = 0; again < 2 && before !== undefined && result.ratio < ALLOWED * before; again++) {
      const other = await measure(kernels, kind === 'software');
      if (other.ratio > result.ratio) result = other;
    }
    today[row.name] = Number(result.ratio.toPrecision(3));
    const fell = !write && before !== undefined && result.ratio < ALLOWED * before;
    if (fell) fallen++;
    console.log(`${fell ? 'FELL' : 'ok  '} ${row.name.padEnd(32)} naive ${result.naive.toPrecision(3)} ms, ours ${result.ours.toPrecision(3)} ms: ${result.ratio.toPrecision(3)}x${before === undefined ? '' : ` (committed ${before}x, least ${(ALLOWED * before).toPrecision(3)}x)`}`);
  }
  engine.destroy();
  if (write) writeFileSync(file, `${JSON.stringify({ ...committed, [adapter]: today }, null, 2)}\n`);
  else if (!Object.keys(known).length) console.log(`no committed ratios for ${adapter}: nothing to compare with (--write makes them)`);
  console.log(`guard: ${rows.length - fallen} of ${rows.length} kernels keep their lead over the naive kernel on ${adapter}`);
  return fallen ? 1 : 0;
}

const [file, flag] = process.argv.slice(2);
process.exitCode = await main(file, flag === '--write');
