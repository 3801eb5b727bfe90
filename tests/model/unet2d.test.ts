import { readdirSync, readFileSync } from 'node:fs';
import { afterAll, describe, expect, test } from 'vitest';
import { Engine } from '../../src/engine/device';
import { Graph, type Tensor } from '../../src/engine/graph';
import { transpose } from '../../src/engine/ops/copy';
import { compile } from '../../src/engine/program';
import { Parameters, WeightStore } from '../../src/model/parameters';
import { parseUNet2DConfig, unet2d, unet2dInputs } from '../../src/model/unet2d';
import { openTensorFile } from '../../src/node/file_source';
import { testDevice } from '../helpers/device';
import { assertClose } from '../helpers/op_suite';

const engine = await Engine.create({ device: await testDevice() });
afterAll(() => engine.destroy());

const goldens = new URL('../goldens/', import.meta.url).pathname;
const cases = readdirSync(goldens).filter((d) => d.startsWith('unet2d_') && !d.includes('condition'));

/** A golden's forward pass with every recorded activation. */
async function runGolden(dir: string, weights: string, sampleName = 'sample') {
  const config = parseUNet2DConfig(JSON.parse(readFileSync(`${dir}/config.json`, 'utf8')), `${dir}/config.json`);
  const io = await openTensorFile(`${dir}/io.safetensors`);
  const wanted = new Set([...io.tensors.keys()].filter((k) => k.startsWith('act.')).map((k) => k.slice(4)));
  const graph = new Graph();
  const parameters = new Parameters(graph);
  const taps = new Map<string, Tensor>();
  const ctx = {
    graph,
    parameters,
    wantsTap: (path: string) => wanted.has(path),
    tap: (path: string, value: Tensor) => {
      if (wanted.has(path)) taps.set(path, value.shape.length === 4 ? transpose(value, [0, 3, 1, 2]) : value);
    },
  };
  const [n, , height, width] = io.tensors.get(sampleName)!.shape as [number, number, number, number];
  const inputs = unet2dInputs(ctx, config, [n, height, width]);
  const output = unet2d(ctx, config, inputs);
  const store = new WeightStore(engine, parameters.specs.values());
  await store.load(await openTensorFile(`${dir}/${weights}`));
  const program = await compile(engine, graph, { outputs: [output, ...taps.values()], bindings: store.bindings(parameters), poison: true });
  program.write(inputs.sample, await io.readF32(sampleName));
  program.write(inputs.timestep, await io.readF32('timestep'));
  if (inputs.classLabels) program.write(inputs.classLabels, await io.readI32('class_labels'));
  program.run();
  const read = async (t: Tensor) => program.read(t);
  return { io, output: await read(output), taps, read, wanted, destroy: () => (program.destroy(), store.destroy()) };
}

describe.each(cases)('%s', (name) => {
  test('forward and recorded activations', async () => {
    const r = await runGolden(goldens + name, 'diffusion_pytorch_model.safetensors');
    expect([...r.taps.keys()].sort()).toEqual([...r.wanted].sort());
    // In execution order, so that the first failure names the layer that went wrong.
    for (const [path, t] of r.taps) assertClose(`${name} ${path}`, await r.read(t), await r.io.readF32(`act.${path}`), 2e-5);
    assertClose(`${name} output`, r.output, await r.io.readF32('output'), 2e-5);
    r.destroy();
  });
});

test.each(['fp16', 'bf16'])('half_weights: weights stored as %s', async (kind) => {
  const r = await runGolden(`${goldens}half_weights`, `diffusion_pytorch_model.${kind}.safetensors`);
  assertClose(`output_${kind}`, r.output, await r.io.readF32(`output_${kind}`), 2e-5);
  r.destroy();
});
