/**
 * Trains the judge's classifier with bruit and writes judge/classifier.safetensors (`npm run judge:train`).
 * Training digits only; the held-back thousand are read once, at the end, for the accuracy that the file records.
 */
import { BatchLoader, type Batch, type ImageDataset } from '../src/data/dataset';
import { gradients } from '../src/engine/autodiff';
import { Engine } from '../src/engine/device';
import { BruitError } from '../src/engine/errors';
import { Graph, type Tensor } from '../src/engine/graph';
import { crossEntropy } from '../src/engine/ops/cross_entropy';
import { controlSize, optimizerStep } from '../src/engine/ops/optimizer';
import { mean, sumSquares } from '../src/engine/ops/sum';
import { reshape } from '../src/engine/ops/reshape';
import { compile, type BufferView } from '../src/engine/program';
import { RngStream, uniforms } from '../src/engine/rng';
import { Parameters, WeightStore, type NamedTensor } from '../src/model/parameters';
import { writeFileAtomic } from '../src/node/files';
import { createNodeGPU } from '../src/node/gpu';
import { loadMnist } from '../src/node/mnist';
import { Progress } from '../src/node/progress';
import { learningRates } from '../src/train/lr_schedule';
import { emaDecayAt } from '../src/train/step';
import { accuracy, allDigits, Classifier, classifier, classifierPath, fitFeatures, judgeFile, pixels, side, toUnit } from './classifier';

const recipe = { seed: 0, epochs: 6, batchSize: 100, learningRate: 3e-3, warmup: 30, beta1: 0.9, beta2: 0.99, eps: 1e-8, weightDecay: 0.05, emaDecay: 0.99 };

/** A small turn (±8°), scaling (±8%), slant (±0.1) and shift (±1.5 pixels) of each image, drawn per (seed, epoch, item); bilinear, black outside. */
function augment({ images, indices, epoch }: Batch, seed: number): Float32Array {
  const source = toUnit(images);
  const out = new Float32Array(source.length);
  const centre = (side - 1) / 2;
  indices.forEach((index, n) => {
    // The loader mirrors no digit, so the numbers of the flip stream are free.
    const [turn, scaling, slant, right, down] = Array.from(uniforms(seed, { index, step: epoch, stream: RngStream.flip }, 5), (u) => 2 * u - 1) as [number, number, number, number, number];
    const angle = (turn * 8 * Math.PI) / 180;
    const scale = 1 + 0.08 * scaling;
    const [cos, sin] = [Math.cos(angle) * scale, Math.sin(angle) * scale];
    const at = (row: number, column: number) => (row < 0 || column < 0 || row >= side || column >= side ? 0 : source[n * pixels + row * side + column]!);
    for (let i = 0; i < side; i++) {
      for (let j = 0; j < side; j++) {
        const v = i - centre - 1.5 * down;
        const u = j - centre - 1.5 * right + 0.1 * slant * v;
        const [y, x] = [sin * u + cos * v + centre, cos * u - sin * v + centre];
        const [row, column] = [Math.floor(y), Math.floor(x)];
        const [fy, fx] = [y - row, x - column];
        out[n * pixels + i * side + j] = (1 - fy) * ((1 - fx) * at(row, column) + fx * at(row, column + 1)) + fy * ((1 - fx) * at(row + 1, column) + fx * at(row + 1, column + 1));
      }
    }
  });
  return out;
}

/** Trains on `loader`'s batches; returns the averaged weights. */
async function train(engine: Engine, loader: BatchLoader): Promise<NamedTensor[]> {
  const { seed, batchSize, beta1, beta2, emaDecay } = recipe;
  const steps = recipe.epochs * loader.batchesPerEpoch;
  const graph = new Graph();
  const parameters = new Parameters(graph);
  const images = graph.input('images', [batchSize, 1, side, side]);
  const labels = graph.input('labels', [batchSize], 'i32');
  const loss = reshape(mean(crossEntropy(classifier({ graph, parameters }, images).logits, labels)), [1]);
  const grads = gradients(loss, [...parameters.tensors.values()]);

  const store = (label: string) => new WeightStore(engine, parameters.specs.values(), label);
  const stores = { weight: store('weights'), gradient: store('gradients'), moment1: store('moment1'), moment2: store('moment2'), ema: store('ema') };
  const bindings = new Map<Tensor, BufferView>(stores.weight.bindings(parameters));
  [...parameters.tensors.keys()].forEach((name, i) => bindings.set(grads[i]!, stores.gradient.view(name)));
  const slabs = stores.weight.slabs.map((_, i) => {
    const leaf = (s: WeightStore) => {
      const t = graph.state(`${s.label}.${i}`, [s.slabs[i]!.bytes / 4]);
      bindings.set(t, { buffer: s.slabs[i]!.buffer, offset: 0 });
      return t;
    };
    return { weight: leaf(stores.weight), gradient: leaf(stores.gradient), moment1: leaf(stores.moment1), moment2: leaf(stores.moment2), ema: leaf(stores.ema) };
  });
  const rates = learningRates({ name: 'cosine', lr: recipe.learningRate, num_warmup_steps: recipe.warmup }, steps);
  const table = Float32Array.from(Array.from(rates).flatMap((rate, n) => [rate, 1 / (1 - beta1 ** (n + 1)), 1 / Math.sqrt(1 - beta2 ** (n + 1)), emaDecayAt(n, emaDecay)]));
  const state = {
    table: graph.constant('optimizer_table', [steps, 4], table),
    counters: graph.state('counters', [4], 'u32'),
    control: graph.state('control', [controlSize], 'f32', new Float32Array(controlSize).fill(1)),
    metrics: graph.state('metrics', [steps, 4]),
  };
  const norm = slabs.map((s) => sumSquares(s.gradient));
  if (norm.length !== 1) throw new BruitError('limit', `the classifier's weights take ${norm.length} buffers on this device; one was expected`);
  optimizerStep(state, slabs, loss, norm[0]!, { kind: 'adamw', beta1, beta2, eps: recipe.eps, weightDecay: recipe.weightDecay, maxNorm: 0, growthInterval: 0, gradientScale: 1 });
  const program = await compile(engine, graph, { outputs: [loss, norm[0]!, state.counters, state.metrics], bindings, label: 'classifier training' });
  try {
    stores.weight.initialise(seed);
    stores.ema.copyFrom(stores.weight);
    const progress = new Progress({ total: steps, label: 'training the judge', unit: 'step' });
    for (let step = 0; step < steps; step++) {
      const batch = await loader.next();
      program.write(images, augment(batch, seed));
      program.write(labels, batch.labels);
      program.run();
      // One step is on the GPU while the next batch is prepared; the loss is read now and then.
      if (step % 20 === 19 || step === steps - 1) progress.update(step + 1, { loss: (await program.read(loss))[0]! });
      else await program.done();
    }
    return await stores.ema.readAll();
  } finally {
    program.destroy();
    Object.values(stores).forEach((s) => s.destroy());
  }
}

async function main(): Promise<void> {
  const engine = await Engine.create({ gpu: createNodeGPU(), powerPreference: 'high-performance' });
  const { train: digits, heldBack } = await loadMnist();
  const started = performance.now();
  const weights = await train(engine, new BatchLoader(digits, { batchSize: recipe.batchSize, seed: recipe.seed }));
  const seconds = (performance.now() - started) / 1000;

  const byName = new Map(weights.map((w) => [w.name, w.data]));
  const judge = await Classifier.create(engine, (name) => byName.get(name)!);
  const reading = async (set: ImageDataset) => {
    const { images, labels } = await allDigits(set);
    const read = await judge.read(images);
    return { read, accuracy: accuracy(read.digits, labels) };
  };
  const [known, unseen] = [await reading(digits), await reading(heldBack)];
  const metadata = {
    format: 'pt',
    accuracy_held_back: unseen.accuracy.toFixed(4),
    accuracy_training: known.accuracy.toFixed(4),
    images_held_back: String(heldBack.length),
    images_training: String(digits.length),
    adapter: engine.profile.name,
    seconds: seconds.toFixed(0),
    recipe: JSON.stringify(recipe),
  };
  await writeFileAtomic(classifierPath, judgeFile(weights, fitFeatures(known.read), metadata));
  process.stdout.write(`${classifierPath}: reads ${(100 * unseen.accuracy).toFixed(2)}% of ${heldBack.length} held-back digits (${(100 * known.accuracy).toFixed(2)}% of training digits), trained in ${seconds.toFixed(0)} s on ${engine.profile.name}\n`);
  judge.destroy();
  engine.destroy();
}

await main();
