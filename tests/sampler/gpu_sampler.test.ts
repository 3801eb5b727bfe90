import { afterAll, describe, expect, test } from 'vitest';
import { Engine } from '../../src/engine/device';
import { BruitError } from '../../src/engine/errors';
import { Graph, type Tensor } from '../../src/engine/graph';
import { add, cast, div, mul, scale, shift, tanh } from '../../src/engine/ops/pointwise';
import { reshape } from '../../src/engine/ops/reshape';
import { concat, slice } from '../../src/engine/ops/copy';
import { samplerStep } from '../../src/engine/ops/sampler_step';
import { compile } from '../../src/engine/program';
import { normals, RngStream } from '../../src/engine/rng';
import { numel } from '../../src/engine/shape';
import { runProgramReference, type Bound, type SamplerProgram, type VarianceHalf } from '../../src/sampler/program';
import { createGpuSampler, type GpuSampler, type GpuSamplerOptions, type SamplerPreview } from '../../src/sampler/sample';
import { createSampler } from '../../src/sampler/scheduler_config';
import { testDevice } from '../helpers/device';
import { assertClose, normal, random } from '../helpers/op_suite';

// Default limits: what runs there runs everywhere.
const device = await testDevice({ limits: 'default' });
const engine = await Engine.create({ device });
afterAll(() => engine.destroy());

const draws = (seed: number, n: number, spread = 1): Float32Array => {
  const rand = random(seed);
  return Float32Array.from({ length: n }, () => spread * normal(rand));
};

/** `body` with a sampler that is destroyed after it. */
async function withSampler<T>(options: GpuSamplerOptions, body: (s: GpuSampler) => Promise<T>): Promise<T> {
  const sampler = await createGpuSampler(engine, options);
  try {
    return await body(sampler);
  } finally {
    sampler.destroy();
  }
}

/** A pointwise model that depends on input, time and label: tanh(x · (t+1)/(t+2) + 0.1 · label). */
const toy = (_: Graph, x: Tensor, timestep: Tensor, labels?: Tensor): Tensor => {
  const column = (t: Tensor) => reshape(t, [x.shape[0]!, 1, 1, 1]);
  const t = column(timestep);
  const y = mul(x, div(shift(t, 1), shift(t, 2)));
  return tanh(labels ? add(y, scale(column(labels), 0.1)) : y);
};
const toyReference = (x: number, t: number, label = 0) => Math.tanh((x * (t + 1)) / (t + 2) + 0.1 * label);

const small = { num_train_timesteps: 40, beta_start: 0.001, beta_end: 0.1 };
const program = (className: string, config: object = {}, steps = 6, options: object = {}): SamplerProgram => createSampler({ _class_name: className, ...small, ...config }, { numInferenceSteps: steps, ...options });
const codeOf = (e: unknown) => (e instanceof BruitError ? e.code : String(e));

describe('against the float64 reference', () => {
  const shape = [3, 2, 5, 7] as const;
  const n = numel(shape);
  const size = n / 3;
  const cases: readonly [name: string, program: SamplerProgram, varianceHalf: boolean][] = [
    ['DDPM, clipped', program('DDPMScheduler', { clip_sample_range: 0.8 }), false],
    ['DDPM, dynamic thresholding', program('DDPMScheduler', { clip_sample: false, thresholding: true, dynamic_thresholding_ratio: 0.83, sample_max_value: 1.7 }), false],
    ['DDPM, learned_range', program('DDPMScheduler', { variance_type: 'learned_range' }), true],
    ['DDPM, learned', program('DDPMScheduler', { variance_type: 'learned', clip_sample: false }), true],
    ['DDPM, learned_range and thresholding', program('DDPMScheduler', { variance_type: 'learned_range', clip_sample: false, thresholding: true, dynamic_thresholding_ratio: 0.9, sample_max_value: 2 }), true],
    ['DDIM with an unused variance half', program('DDIMScheduler', {}, 6, { eta: 0.7 }), true],
    ['DPM-Solver++ 3 with thresholding', program('DPMSolverMultistepScheduler', { solver_order: 3, thresholding: true, dynamic_thresholding_ratio: 0.9, sample_max_value: 2 }), false],
    ['UniPC: two slots stored', program('UniPCMultistepScheduler'), false],
    ['LMS', program('LMSDiscreteScheduler'), false],
    ['PNDM', program('PNDMScheduler', {}, 8), false],
    ['Euler ancestral', program('EulerAncestralDiscreteScheduler'), false],
  ];

  test('the cases cover every bound and variance', () => {
    expect(new Set(cases.map(([, p]) => p.bound.kind))).toEqual(new Set<Bound['kind']>(['none', 'clip', 'quantile']));
    expect(new Set(cases.map(([, p]) => p.varianceHalf))).toEqual(new Set<VarianceHalf>(['unused', 'learned_range', 'learned']));
  });

  test.each(cases)('%s', async (_, p, varianceHalf) => {
    const latents = draws(1, n);
    const noise = draws(2, n * p.noiseDraws);
    // The variance half is v = tanh(…) of the input, in [-1, 1]; `learned` counts its negative values as 0.
    const model = (g: Graph, x: Tensor, t: Tensor) => (varianceHalf ? concat([toy(g, x, t), tanh(scale(x, 0.5))], 1) : toy(g, x, t));
    const reference = (x: Float64Array, t: number) => {
      if (!varianceHalf) return x.map((v) => toyReference(v, t));
      const y = new Float64Array(2 * n);
      x.forEach((v, i) => {
        const at = Math.floor(i / size) * 2 * size + (i % size);
        y[at] = toyReference(v, t);
        y[at + size] = Math.tanh(0.5 * v);
      });
      return y;
    };
    const samples: Float64Array[] = [];
    const x0s: Float64Array[] = [];
    const noises = Array.from({ length: p.noiseDraws }, (_, i) => noise.subarray(i * n, (i + 1) * n));
    runProgramReference(p, Float32Array.from(latents, (z) => z * p.initNoiseSigma), 3, reference, noises, ({ sample, x0 }) => {
      samples.push(sample);
      x0s.push(x0.slice());
    });
    await withSampler({ program: p, shape, model, latents, noise, preview: true }, async (s) => {
      for (let run = 0; run < 2; run++) {
        const previews: SamplerPreview[] = [];
        await s.run({ onPreview: (preview) => previews.push(preview) });
        expect(previews.map(({ step }) => step)).toEqual(p.steps.map((_, i) => i));
        previews.forEach(({ step, sample, x0 }) => {
          assertClose(`sample of step ${step}, run ${run}`, sample, samples[step]!, 1e-5);
          assertClose(`x0 of step ${step}, run ${run}`, x0, x0s[step]!, 1e-5);
        });
        expect(await s.read()).toEqual(previews[previews.length - 1]!.sample);
      }
    });
  });
});

describe('values of the time steps, computed before the loop', () => {
  /** x · tanh(p) with p [R, 5] from time step and label, of which the loop asks `hoist`: as a model's time projections are. */
  const projected = (t: Tensor, labels: Tensor | undefined) => {
    const rows = t.shape[0]!;
    const y = reshape(labels ? add(scale(t, 0.05), scale(cast(labels, 'f32'), 0.3)) : scale(t, 0.05), [rows, 1]);
    return tanh(mul(y, t.graph.constant('weights', [1, 5], Float32Array.of(1, -2, 0.5, 3, 0.25))));
  };
  const shape = [3, 5, 2, 3] as const;
  const options = (hoisted: boolean, labels?: Int32Array, steps = 6): GpuSamplerOptions => ({
    program: program('DDIMScheduler', { clip_sample: false }, steps),
    shape,
    model: (_, x, timestep, given, step) => {
      const value = (path: string, offset: number) => {
        const p = step.hoist({ path }, () => projected(shift(timestep, offset), given));
        return reshape(p, [p.shape[0]!, 5, 1, 1]);
      };
      return add(mul(x, value('a', 0)), value('b', 7));
    },
    ...(hoisted && { timeValues: (_: Graph, t: Tensor, given: Tensor | undefined) => new Map([['a', projected(t, given)], ['b', projected(shift(t, 7), given)], ['never asked for', projected(t, given)]]) }),
    seed: 3,
    ...(labels && { labels, guidance: { scale: 2, nullLabel: 9 } }),
  });

  test.each([['without labels', undefined], ['with labels and guidance', Int32Array.of(1, 4, 2)]] as const)('%s: the same samples from fewer dispatches', async (_, labels) => {
    const inside = await createGpuSampler(engine, options(false, labels));
    const before = await createGpuSampler(engine, options(true, labels));
    expect(before.stepProgram.steps.length).toBeLessThan(inside.stepProgram.steps.length);
    for (const change of labels ? [{}, { labels: Int32Array.of(0, 0, 7) }] : [{}, { seed: 8 }]) {
      inside.set(change);
      before.set(change);
      await inside.run();
      await before.run();
      const expected = await inside.read();
      assertClose('sample', await before.read(), expected, 1e-6);
      expect(new Set(expected).size).toBeGreaterThan(20);
    }
    inside.destroy();
    before.destroy();
  });

  test('values for which there is no room stay in the loop', async () => {
    const wide = (hoisted: boolean): GpuSamplerOptions => ({
      ...options(false),
      model: (_, x, timestep, __, step) => mul(x, reshape(slice(step.hoist({ path: 'wide' }, () => mul(reshape(timestep, [3, 1]), timestep.graph.constant('ones', [1, 64], new Float32Array(64).fill(0.01)))), 1, 0, 1), [-1, 1, 1, 1])),
      ...(hoisted && { timeValues: (g: Graph, t: Tensor) => new Map([['wide', mul(reshape(t, [t.shape[0]!, 1]), g.constant('ones', [1, 2 ** 21], new Float32Array(2 ** 21).fill(0.01)))]]) }),
    });
    await withSampler(wide(false), async (inside) =>
      withSampler(wide(true), async (s) => {
        expect(s.stepProgram.steps.map(({ label }) => label)).toEqual(inside.stepProgram.steps.map(({ label }) => label));
        await inside.run();
        await s.run();
        expect(await s.read()).toEqual(await inside.read());
      }),
    );
  });
});

describe('random numbers', () => {
  test('start noise and draws are those of the host', async () => {
    const p = program('EulerAncestralDiscreteScheduler', {}, 4);
    const shape = [2, 1, 3, 5] as const;
    const drawn = (step: number) => Float32Array.from([0, 1].flatMap((i) => [...normals(99, { index: 7 + i, step, stream: RngStream.noise }, 15)]));
    const noises = p.steps.filter((s) => s.noiseIndex >= 0).map((s) => drawn(p.steps.indexOf(s) + 1));
    const expected = runProgramReference(p, drawn(0).map((z) => z * p.initNoiseSigma), 2, (x, t) => x.map((v) => toyReference(v, t)), noises);
    await withSampler({ program: p, shape, model: toy, seed: 99, sampleOffset: 7 }, async (s) => {
      await s.run();
      assertClose('sample', await s.read(), expected, 1e-5);
    });
  });

  test('a sample is the same in any batch, bit for bit', async () => {
    const p = program('DDPMScheduler', { clip_sample: false, thresholding: true });
    const size = 3 * 5 * 7;
    const sampleOf = (n: number, sampleOffset: number) =>
      withSampler({ program: p, shape: [n, 3, 5, 7], model: toy, seed: 5, sampleOffset, labels: Int32Array.from({ length: n }, (_, i) => sampleOffset + i), guidance: { scale: 3, nullLabel: 0 } }, async (s) => {
        await s.run();
        return s.read();
      });
    const all = await sampleOf(5, 10);
    const some = await sampleOf(2, 12);
    const one = await sampleOf(1, 14);
    expect(some).toEqual(all.subarray(2 * size, 4 * size));
    expect(one).toEqual(all.subarray(4 * size));
    expect(all.subarray(0, size)).not.toEqual(all.subarray(size, 2 * size));
  });

  test('seed, offset, latents, labels and guidance change without compiling anew', async () => {
    const p = program('DDIMScheduler', { clip_sample: false });
    const n = 2 * 6;
    const reference = (latents: Float32Array, labels: readonly number[], w: number) =>
      runProgramReference(p, latents, 2, (x, t) =>
        x.map((v, i) => {
          const u = toyReference(v, t, 10);
          return u + w * (toyReference(v, t, labels[Math.floor(i / 6)]) - u);
        }),
      );
    await withSampler({ program: p, shape: [2, 1, 2, 3], model: toy, seed: 1, labels: Int32Array.of(3, 4), guidance: { scale: 2, nullLabel: 10 } }, async (s) => {
      const { size } = engine.pipelines;
      const result = async (inputs: Parameters<GpuSampler['set']>[0] = {}) => {
        s.set(inputs);
        await s.run();
        return s.read();
      };
      const first = await result();
      expect(await result()).toEqual(first);
      expect(await result({ seed: 2 })).not.toEqual(first);
      expect((await result({ seed: 1, sampleOffset: 1 })).subarray(0, 6)).not.toEqual(first.subarray(0, 6));
      expect(await result({ sampleOffset: 0 })).toEqual(first);
      const latents = draws(8, n);
      assertClose('given latents', await result({ latents }), reference(latents, [3, 4], 2), 1e-5);
      assertClose('other labels', await result({ labels: Int32Array.of(0, 7) }), reference(latents, [0, 7], 2), 1e-5);
      assertClose('other scale', await result({ guidanceScale: 1 }), reference(latents, [0, 7], 1), 1e-5);
      expect(await result({ latents: null, guidanceScale: 2, labels: Int32Array.of(3, 4) })).toEqual(first);
      expect(engine.pipelines.size).toBe(size);
    });
  });

  test('guidance leaves the variance half to the conditional prediction', async () => {
    const p = program('DDPMScheduler', { variance_type: 'learned_range', clip_sample: false }, 3);
    const latents = draws(3, 8);
    const noise = draws(4, 8 * p.noiseDraws);
    const halves = (x: Float64Array, y: (v: number) => number, v: (v: number) => number) => Float64Array.from([0, 1].flatMap((i) => [...x.subarray(4 * i, 4 * i + 4).map(y), ...x.subarray(4 * i, 4 * i + 4).map(v)]));
    const expected = runProgramReference(p, latents, 2, (x, t) => halves(x, (a) => toyReference(a, t, 0) + 4 * (toyReference(a, t, 5) - toyReference(a, t, 0)), (a) => toyReference(a, t, 5)), Array.from({ length: p.noiseDraws }, (_, i) => noise.subarray(8 * i, 8 * i + 8)));
    const model = (g: Graph, x: Tensor, t: Tensor, labels?: Tensor) => concat([toy(g, x, t, labels), toy(g, x, t, labels)], 1);
    await withSampler({ program: p, shape: [2, 1, 2, 2], model, latents, noise, labels: Float32Array.of(5, 5), guidance: { scale: 4, nullLabel: 0 } }, async (s) => {
      await s.run();
      assertClose('sample', await s.read(), expected, 1e-5);
    });
  });
});

describe('a run', () => {
  const p = program('DDPMScheduler', {}, 20);
  const options = { program: p, shape: [2, 1, 8, 8] as const, model: toy, seed: 3 } satisfies GpuSamplerOptions;

  test('makes no GPU object and reads nothing back', async () => {
    const made: string[] = [];
    const proto = Object.getPrototypeOf(device) as GPUDevice;
    const watched = ['createBuffer', 'createBindGroup', 'createComputePipeline', 'createComputePipelineAsync', 'createShaderModule', 'createTexture'] as const;
    await withSampler(options, async (s) => {
      const buffers = Object.getPrototypeOf(s.sampleView.buffer) as GPUBuffer;
      const restore: (() => void)[] = [];
      const watch = (target: object, name: string) => {
        const own = Object.getOwnPropertyDescriptor(target, name)!;
        const call = own.value as (...args: unknown[]) => unknown;
        Object.defineProperty(target, name, {
          ...own,
          value(this: unknown, ...args: unknown[]) {
            made.push(name);
            return call.apply(this, args);
          },
        });
        restore.push(() => Object.defineProperty(target, name, own));
      };
      for (const name of watched) watch(proto, name);
      watch(buffers, 'mapAsync');
      try {
        await s.run({ onProgress: () => undefined });
        expect(made).toEqual([]);
        await s.read();
        expect(made).toEqual(['createBuffer', 'mapAsync']);
      } finally {
        restore.forEach((undo) => undo());
      }
    });
  });

  test('reports every step, in order', async () => {
    await withSampler(options, async (s) => {
      const seen: number[] = [];
      await s.run({
        onProgress: (done, total) => {
          expect(total).toBe(20);
          seen.push(done);
        },
      });
      expect(seen).toEqual(Array.from({ length: 20 }, (_, i) => i + 1));
    });
  });

  test('stops at an abort, and the sampler stays usable', async () => {
    await withSampler({ ...options, preview: true }, async (s) => {
      await s.run();
      const whole = await s.read();
      const controller = new AbortController();
      let last = 0;
      let error: unknown;
      const reason = new Error('enough');
      await s
        .run({
          signal: controller.signal,
          onProgress: (done) => {
            last = done;
            if (done === 3) controller.abort(reason);
          },
          onPreview: ({ step }) => expect(step).toBeLessThan(19),
        })
        .catch((e: unknown) => (error = e));
      expect(codeOf(error)).toBe('aborted');
      expect((error as Error).message).toMatch(/aborted after \d+ of 20 steps/);
      expect((error as Error).cause).toBe(reason);
      expect(last).toBe(3);
      await s.run();
      expect(await s.read()).toEqual(whole);
      await expect(s.run({ signal: AbortSignal.abort() })).rejects.toThrow(/after 0 of 20/);
    });
  });

  test('a callback that throws ends the run with its error, and the sampler stays usable', async () => {
    await withSampler({ ...options, preview: true }, async (s) => {
      const fail = () => {
        throw new Error('mine');
      };
      await expect(s.run({ onProgress: fail })).rejects.toThrow('mine');
      await expect(s.run({ onPreview: fail })).rejects.toThrow('mine');
      await s.run();
      expect((await s.read()).every(Number.isFinite)).toBe(true);
    });
  });

  test('previews at intervals and at the end, changing nothing', async () => {
    const plain = await withSampler(options, async (s) => {
      await s.run();
      return s.read();
    });
    await withSampler({ ...options, preview: true }, async (s) => {
      const seen: SamplerPreview[] = [];
      await s.run({ previewEvery: 6, onPreview: (preview) => seen.push(preview) });
      expect(seen.map(({ step }) => step)).toEqual([5, 11, 17, 19]);
      expect(seen[3]!.sample).toEqual(plain);
      // The last DDPM step returns the clipped x0 itself.
      assertClose('x0', seen[3]!.x0, plain, 1e-6);
      expect(await s.read()).toEqual(plain);
    });
  });

  test('says what is wrong with its inputs', async () => {
    await expect(createGpuSampler(engine, { ...options, labels: Int32Array.of(1, 2, 3) })).rejects.toThrow(/3 labels for 2 images/);
    await expect(createGpuSampler(engine, { ...options, guidance: { scale: 2, nullLabel: 0 } })).rejects.toThrow(/guidance needs labels/);
    await expect(createGpuSampler(engine, { ...options, program: program('DDPMScheduler', { variance_type: 'learned' }) })).rejects.toThrow(/variance_type "learned" needs a model with twice/);
    await expect(createGpuSampler(engine, { ...options, model: (_, x) => reshape(x, [2, 64]) })).rejects.toThrow(/model's output \[2,64\] must have the sample's shape \[2,1,8,8\]/);
    await expect(createGpuSampler(engine, { ...options, noise: new Float32Array(3) })).rejects.toThrow(/3 numbers do not fill \[19,2,1,8,8\]: DDPMScheduler takes 19 draws/);
    const before = engine.liveBytes;
    await withSampler(options, async (s) => {
      expect(() => s.set({ seed: -1 })).toThrow(/seed -1/);
      expect(() => s.set({ labels: Int32Array.of(1, 2) })).toThrow(/made without/);
      expect(() => s.set({ latents: new Float32Array(5) })).toThrow(/5 numbers do not fill \[2,1,8,8\]/);
      expect(() => s.set({ guidanceScale: 2 })).toThrow(/made without guidance/);
      await expect(s.run({ onPreview: () => undefined })).rejects.toThrow(/preview: true/);
      const running = s.run();
      expect(() => s.set({ seed: 1 })).toThrow(/is running/);
      await expect(s.run()).rejects.toThrow(/is running/);
      await running;
    });
    expect(engine.liveBytes).toBe(before);
  });
});

test('a run that ended in NaN leaves nothing to the next', async () => {
  const p = program('LMSDiscreteScheduler', {}, 5);
  await withSampler({ program: p, shape: [1, 1, 4, 4], model: toy, seed: 1 }, async (s) => {
    await s.run();
    const clean = await s.read();
    s.set({ latents: new Float32Array(16).fill(NaN) });
    await s.run();
    expect((await s.read()).every(Number.isNaN)).toBe(true);
    s.set({ latents: null });
    await s.run();
    expect(await s.read()).toEqual(clean);
  });
});

test('sampler_step refuses slots, noise and thresholds of wrong shapes', () => {
  const g = new Graph();
  const state = { table: g.constant('table', [1, 48], new Float32Array(48)), counter: g.state('counter', [1], 'u32'), sample: g.state('sample', [1, 2, 2, 2]), slots: g.state('slots', [3, 7]) };
  const output = g.input('output', [1, 2, 2, 2]);
  expect(() => samplerStep(state, { output, varianceHalf: 'unused', bound: { kind: 'none' } })).toThrow(/slots \[3,7\] must be \[at most 6, 8\]/);
  const ok = { ...state, slots: g.state('slots', [1]) };
  expect(() => samplerStep(ok, { output, noise: { kind: 'drawn', tensor: g.input('noise', [2, 2, 2]) }, varianceHalf: 'unused', bound: { kind: 'none' } })).toThrow(/noise and thresholds are \[2,2,2\] but must be \[1,2,2,2\]/);
  expect(() => samplerStep(ok, { output: g.input('odd', [1, 3, 2, 2]), varianceHalf: 'unused', bound: { kind: 'none' } })).toThrow(/or twice its channels/);
});

test('dispatches beyond the device\'s workgroups per dimension fold', async () => {
  // A device of at most 7 workgroups a dimension, so that a small sample is beyond it.
  const narrow = await Engine.create({ device });
  Object.assign(narrow.profile.limits, { maxComputeWorkgroupsPerDimension: 7 });
  const p = program('DDPMScheduler', { thresholding: true, clip_sample: false }, 3);
  const shape = [11, 1, 13, 17] as const;
  const n = numel(shape);
  const latents = draws(6, n);
  const noise = draws(7, n * p.noiseDraws);
  const expected = runProgramReference(p, latents, 11, (x, t) => x.map((v) => toyReference(v, t)), Array.from({ length: p.noiseDraws }, (_, i) => noise.subarray(i * n, (i + 1) * n)));
  const sampler = await createGpuSampler(narrow, { program: p, shape, model: toy, latents, noise });
  expect(Math.max(...sampler.stepProgram.steps.map((s) => s.workgroups[1]))).toBeGreaterThan(1);
  await sampler.run();
  assertClose('sample', await sampler.read(), expected, 1e-5);
  sampler.destroy();
});

test('the step program compiles without what the program does not use', async () => {
  const g = new Graph();
  const state = { table: g.constant('table', [1, 48], new Float32Array(48)), counter: g.state('counter', [1], 'u32'), sample: g.state('sample', [1, 1, 2, 2]), slots: g.state('slots', [1]) };
  samplerStep(state, { output: g.input('output', [1, 1, 2, 2]), varianceHalf: 'unused', bound: { kind: 'none' } });
  const compiled = await compile(engine, g, { outputs: [] });
  expect(compiled.steps.map((s) => s.label)).toEqual(['graph:sampler_step.update', 'graph:increment.increment']);
  compiled.destroy();
});
