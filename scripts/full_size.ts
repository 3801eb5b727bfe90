// Builds a published U-Net from its config.json with random weights, plans it, and runs one guided step:
//   node scripts/run.mjs [--adapter KIND] scripts/full_size.ts [CONFIG [LATENTS]]
// CONFIG is tests/configs/sd15_unet.json by default, LATENTS its sample_size.
import { readFileSync } from 'node:fs';
import { Engine } from '../src/engine/device';
import { Graph } from '../src/engine/graph';
import { compile } from '../src/engine/program';
import { normals, RngStream } from '../src/engine/rng';
import { numel } from '../src/engine/shape';
import { Parameters, WeightStore } from '../src/model/parameters';
import { conditionInputs, parseUNet2DConditionConfig, unet2dCondition } from '../src/model/unet2d_condition';
import { createNodeGPU } from '../src/node/gpu';
import { addedSizes } from '../src/pipelines/declarations';

const [file = 'tests/configs/sd15_unet.json', latents] = process.argv.slice(2);
const config = parseUNet2DConditionConfig(JSON.parse(readFileSync(file, 'utf8')), file);
const side = latents === undefined ? config.sample_size![0] : Number(latents);
const engine = await Engine.create({ gpu: createNodeGPU() });
const graph = new Graph();
const parameters = new Parameters(graph);
const output = unet2dCondition({ graph, parameters }, config, conditionInputs({ graph, parameters }, config, { sample: [2, side, side], tokens: 77, ...addedSizes(config) }));
const seconds = (since: number): string => `${((performance.now() - since) / 1000).toFixed(1)} s`;
let start = performance.now();
const weights = new WeightStore(engine, parameters.specs.values());
// Initialising each as its layer asks for takes minutes on the host; what runs is the same.
const some = normals(1, { index: 0, step: 0, stream: RngStream.noise }, 2 ** 20).map((z) => 0.02 * z);
for (const { buffer, bytes } of weights.slabs) for (let at = 0; at < bytes; at += some.byteLength) engine.device.queue.writeBuffer(buffer, at, some, 0, Math.min(some.length, Math.floor((bytes - at) / 4)));
const program = await compile(engine, graph, { outputs: [output], bindings: weights.bindings(parameters) });
const gib = (bytes: number): string => `${(bytes / 2 ** 30).toFixed(2)} GiB`;
const count = [...parameters.specs.values()].reduce((n, { shape }) => n + numel(shape), 0);
console.log(`${(count / 1e6).toFixed(1)} M weights, ${gib(weights.slabs.reduce((n, { bytes }) => n + bytes, 0))} in ${weights.slabs.length} slabs; activations ${gib(program.plan.plannedBytes)}; made and compiled in ${seconds(start)} on ${engine.profile.name}`);
for (const [i, leaf] of graph.leaves.filter(({ kind }) => kind === 'input').entries()) {
  program.write(leaf, leaf.name === 'timestep' ? Float32Array.of(500, 500) : normals(2, { index: i, step: 0, stream: RngStream.noise }, numel(leaf.shape)));
}
start = performance.now();
program.run();
const values = await program.read(output);
console.log(`one step of [${output.shape.join()}] in ${seconds(start)}: ${values.every(Number.isFinite) ? 'all finite' : 'NOT FINITE'}, standard deviation ${Math.sqrt(values.reduce((s, v) => s + v * v, 0) / values.length).toFixed(3)}`);
process.exitCode = values.every(Number.isFinite) ? 0 : 1;
