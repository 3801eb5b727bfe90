/** What a run of a recorded program asks of WebGPU, and what the program holds. Milliseconds of the host are the race's to measure (bench/race.mjs). */
import { afterAll, beforeAll, expect, test } from 'vitest';
import { Engine } from '../../src/engine/device';
import { Graph, type Tensor } from '../../src/engine/graph';
import { compile, type Program } from '../../src/engine/program';
import { Parameters, WeightStore } from '../../src/model/parameters';
import { parseUNet2DConfig, unet2d } from '../../src/model/unet2d';
import { testDevice } from '../helpers/device';

const device = await testDevice();
const engine = await Engine.create({ device });
afterAll(() => engine.destroy());

const config = parseUNet2DConfig({ _class_name: 'UNet2DModel', sample_size: 16, in_channels: 3, out_channels: 3, block_out_channels: [16, 32], down_block_types: ['DownBlock2D', 'AttnDownBlock2D'], up_block_types: ['AttnUpBlock2D', 'UpBlock2D'], layers_per_block: 2, norm_num_groups: 8 });

let program: Program;
let store: WeightStore;
let inputs: Tensor[];
let output: Tensor;
let held: number;
beforeAll(async () => {
  const before = engine.liveBytes;
  const graph = new Graph();
  const parameters = new Parameters(graph);
  inputs = [graph.input('sample', [2, 3, 16, 16]), graph.input('timestep', [2])];
  output = unet2d({ graph, parameters }, config, { sample: inputs[0]!, timestep: inputs[1]! });
  store = new WeightStore(engine, parameters.specs.values());
  store.initialise(1);
  program = await compile(engine, graph, { outputs: [output], bindings: store.bindings(parameters) });
  held = engine.liveBytes - before;
});

/** Calls of all methods of WebGPU's objects by name while `body` runs. */
async function calls(body: () => Promise<void> | void): Promise<Record<string, number>> {
  const counted: Record<string, number> = {};
  const encoder = device.createCommandEncoder();
  const pass = encoder.beginComputePass();
  pass.end();
  const objects = [device, device.queue, encoder, pass, program.view(output).buffer].map((o) => Object.getPrototypeOf(o) as object);
  device.queue.submit([encoder.finish()]);
  const restore: (() => void)[] = [];
  for (const target of objects) {
    for (const [name, own] of Object.entries(Object.getOwnPropertyDescriptors(target))) {
      if (typeof own.value !== 'function' || name === 'constructor') continue;
      const call = own.value as (...args: unknown[]) => unknown;
      Object.defineProperty(target, name, {
        ...own,
        value(this: unknown, ...args: unknown[]) {
          counted[name] = (counted[name] ?? 0) + 1;
          return call.apply(this, args);
        },
      });
      restore.push(() => Object.defineProperty(target, name, own));
    }
  }
  try {
    await body();
  } finally {
    restore.forEach((undo) => undo());
  }
  return counted;
}

test('a run makes an encoder and its command buffer, which WebGPU has no way around, and nothing else', async () => {
  const counted = await calls(async () => {
    program.run(3);
    await program.done();
  });
  const { setPipeline, setBindGroup, dispatchWorkgroups, onSubmittedWorkDone, ...rest } = counted;
  expect(rest).toEqual({ createCommandEncoder: 3, beginComputePass: 3, end: 3, finish: 3, submit: 3 });
  // One for `done`, one for the speed, which is asked again when more was submitted meanwhile.
  expect(onSubmittedWorkDone).toBeLessThanOrEqual(3);
  expect(dispatchWorkgroups).toBe(3 * program.steps.length);
  expect(setBindGroup).toBe(dispatchWorkgroups);
  expect(setPipeline).toBeLessThanOrEqual(dispatchWorkgroups!);
  expect(program.steps.length).toBeGreaterThan(50);
});

test('a program holds what its plan says, within a tenth', () => {
  const planned = program.bytes + store.bytes;
  expect(held).toBeGreaterThanOrEqual(planned);
  expect(held).toBeLessThan(1.1 * planned);
  expect(program.bytes).toBeGreaterThan(program.plan.plannedBytes);
});
