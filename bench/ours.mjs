/**
 * bruit for benchmark pages: `npm run bench:bundle` makes bench/dist/ours.js of this, one ES module with the shaders inside.
 *
 *   const rows = await setup({ requestDevice });
 *   const { run, read } = await rows.matmul({ inputs: { a: { shape, data }, b: { shape, data } } });
 *   await run(10);                 // ten runs, resolved when the GPU is done
 *   const values = await read();   // of the last run, in the reference layout
 *
 * The reference layout is PyTorch's: images [N,C,H,W], filters [K,C,R,S], heads [1,heads,T,D]. Inputs are brought into the engine's layout, and
 * weights into the kernels', when a row is set up; what `run` does is the op, the model or the training step itself.
 */
import { Engine } from '../src/engine/device';
import { Graph } from '../src/engine/graph';
import { attention } from '../src/engine/ops/attention';
import { conv2d } from '../src/engine/ops/conv2d';
import { groupNorm } from '../src/engine/ops/group_norm';
import { matmul } from '../src/engine/ops/matmul';
import { measurePeak } from '../src/engine/peak';
import { compile } from '../src/engine/program';
import { numel } from '../src/engine/shape';
import { Parameters, toStored, WeightStore } from '../src/model/parameters';
import { parseUNet2DConfig, unet2d } from '../src/model/unet2d';
import { DiffusionProcess } from '../src/sampler/diffusion_process';
import { TrainingStep } from '../src/train/step';

/** `google/ddpm-cifar10-32`, smaller: channels (64, 128, 128), one layer a block, attention at 16x16. 4.44 M parameters. */
export const unetConfig = parseUNet2DConfig({
  _class_name: 'UNet2DModel',
  sample_size: 32,
  in_channels: 3,
  out_channels: 3,
  center_input_sample: false,
  time_embedding_type: 'positional',
  freq_shift: 1,
  flip_sin_to_cos: false,
  down_block_types: ['DownBlock2D', 'AttnDownBlock2D', 'DownBlock2D'],
  up_block_types: ['UpBlock2D', 'AttnUpBlock2D', 'UpBlock2D'],
  block_out_channels: [64, 128, 128],
  layers_per_block: 1,
  mid_block_scale_factor: 1,
  downsample_padding: 0,
  act_fn: 'silu',
  attention_head_dim: null,
  norm_num_groups: 32,
  norm_eps: 1e-6,
});

/** Names, checkpoint shapes and initialisation of the weights that `unet` and `train` take. */
export function unetWeights() {
  const graph = new Graph();
  const parameters = new Parameters(graph);
  unet2d({ graph, parameters }, unetConfig, { sample: graph.input('x', [1, 3, 32, 32]), timestep: graph.input('t', [1]) });
  return [...parameters.specs.values()].map(({ name, shape, init }) => ({ name, shape, init }));
}

/** Swaps two neighbouring runs of axes: [outer, a, b, inner] to [outer, b, a, inner]. */
function swap(data, outer, a, b, inner = 1) {
  const out = new Float32Array(data.length);
  for (let o = 0; o < outer; o++) {
    for (let i = 0; i < a; i++) {
      for (let j = 0; j < b; j++) {
        const from = ((o * a + i) * b + j) * inner;
        const to = ((o * b + j) * a + i) * inner;
        if (inner === 1) out[to] = data[from];
        else out.set(data.subarray(from, from + inner), to);
      }
    }
  }
  return out;
}

const toChannelsLast = ({ shape: [n, c, h, w], data }) => swap(data, n, c, h * w);
const toChannelsFirst = (data, [n, h, w, c]) => swap(data, n, h * w, c);

/** Optional features that this page's adapter has and kernels can use. */
async function usefulFeatures() {
  const adapter = await globalThis.navigator?.gpu?.requestAdapter();
  return ['subgroups', 'shader-f16', 'timestamp-query'].filter((name) => adapter?.features.has(name));
}

/**
 * @param requestDevice gives a device with the adapter's limits; it is told the optional features that kernels can use, as a descriptor that it
 *   may heed
 * @param opts `variants` forces kernel variants by op name, as `compile` does
 */
export async function setup({ requestDevice, opts = {} }) {
  const engine = await Engine.create({ device: await requestDevice({ requiredFeatures: await usefulFeatures() }) });
  const options = opts.variants ? { variants: opts.variants } : {};

  /** A graph of one output; `values` are written once. */
  async function row(label, graph, values, output, layout = (data) => data) {
    const program = await compile(engine, graph, { ...options, outputs: [output], label });
    for (const [leaf, data] of values) program.write(leaf, data);
    return handle(program, async () => layout(await program.read(output), output.shape), () => program.destroy());
  }

  const handle = (program, read, destroy, stores = []) => ({
    async run(k) {
      program.run(k);
      await program.done();
    },
    read,
    destroy,
    dispatches: program.steps.length,
    flops: program.steps.reduce((sum, { cost }) => sum + cost.flops, 0),
    /** Bytes of activations and scratch memory: what the plan says, and what no plan can beat; `all` of the program, with its inputs and weights. */
    plan: { planned: program.plan.plannedBytes, least: program.plan.peakLiveBytes, naive: program.plan.naiveBytes, all: stores.reduce((n, s) => n + s.bytes, program.bytes) },
  });

  return {
    engine,
    measurePeak: () => measurePeak(engine),

    matmul(w) {
      const { a, b } = w.inputs;
      const graph = new Graph();
      const [left, right] = [graph.input('a', a.shape), graph.input('b', b.shape)];
      return row(w.name, graph, [[left, a.data], [right, b.data]], matmul(left, right));
    },

    conv2d(w) {
      const { x, w: filter } = w.inputs;
      const [n, c, height, width] = x.shape;
      const [k, , r, s] = filter.shape;
      const graph = new Graph();
      const [image, weight] = [graph.input('x', [n, height, width, c]), graph.input('w', [r, s, c, k])];
      const y = conv2d(image, weight, { stride: w.stride ?? 1, padding: w.pad ?? 0 });
      return row(w.name, graph, [[image, toChannelsLast(x)], [weight, toStored(filter.data, filter.shape, 'conv')]], y, toChannelsFirst);
    },

    gn_silu(w) {
      const { x, gamma, beta } = w.inputs;
      const [n, c, height, width] = x.shape;
      const graph = new Graph();
      const [image, scale, shift] = [graph.input('x', [n, height, width, c]), graph.input('gamma', [c]), graph.input('beta', [c])];
      const y = groupNorm(image, scale, shift, { groups: w.groups, eps: w.eps, silu: true });
      return row(w.name, graph, [[image, toChannelsLast(x)], [scale, gamma.data], [shift, beta.data]], y, toChannelsFirst);
    },

    attention(w) {
      const graph = new Graph();
      // Heads lie beside each other in the rows of a projection: [batch, T, heads·D].
      const [q, k, v] = ['q', 'k', 'v'].map((name) => {
        const { shape: [n, heads, tokens, head], data } = w.inputs[name];
        return [graph.input(name, [n, tokens, heads * head]), swap(data, n, heads, tokens, head)];
      });
      const [n, heads, tokens, head] = w.inputs.q.shape;
      return row(w.name, graph, [q, k, v], attention(q[0], k[0], v[0], { heads }), (data) => swap(data, n, tokens, heads, head));
    },

    async unet(w) {
      const { x, t } = w.inputs;
      const graph = new Graph();
      const parameters = new Parameters(graph);
      const [sample, timestep] = [graph.input('x', x.shape), graph.input('t', t.shape)];
      const output = unet2d({ graph, parameters }, unetConfig, { sample, timestep });
      const store = new WeightStore(engine, parameters.specs.values());
      for (const { name, data } of w.weights) store.write(name, data);
      const program = await compile(engine, graph, { ...options, outputs: [output], bindings: store.bindings(parameters), label: w.name });
      program.write(sample, x.data);
      program.write(timestep, t.data);
      return handle(program, () => program.read(output), () => {
        program.destroy();
        store.destroy();
      }, [store]);
    },

    /** Forward pass at (x, t), mean squared error to `target`, backward pass, clipping to `w.clip` (1), AdamW, EMA of `w.ema` (0.9999). `read` gives [loss] of the last step, taken before its update. */
    async train(w) {
      const { x, t, target } = w.inputs;
      let timestep;
      const step = await TrainingStep.create(engine, {
        batch: x.shape,
        // x is noisy and `target` known already: one time step that adds no noise, and the noise as what is to be predicted.
        process: new DiffusionProcess([0]),
        loss: { predictionType: 'epsilon' },
        recordedDraws: true,
        buildModel: (ctx, sample) => {
          timestep = ctx.graph.input('timestep', t.shape);
          return unet2d(ctx, unetConfig, { sample, timestep });
        },
        optimizer: { kind: 'adamw', beta1: w.b1 ?? 0.9, beta2: w.b2 ?? 0.999, eps: w.eps ?? 1e-8, weightDecay: w.wd ?? 0.01, maxGradNorm: w.clip ?? 1 },
        learningRates: new Float32Array(4096).fill(w.lr ?? 1e-4),
        emaDecay: w.ema ?? 0.9999,
        seed: 0,
        labelled: false,
      });
      for (const { name, data } of w.weights) step.weights.write(name, data);
      step.ema.copyFrom(step.weights);
      step.write({ images: x.data, noise: target.data, t: new Int32Array(numel(t.shape)) });
      step.program.write(timestep, t.data);
      return handle(step.program, () => step.read(step.values.loss), () => step.destroy(), [step.weights, step.gradients, step.moment1, step.moment2, step.ema, step.frozen]);
    },
  };
}
