/** Everything that a run of a sampler passed through, kept in GPU memory for scrubbing. */
import type { Engine } from '../../src/engine/device';
import type { BufferView } from '../../src/engine/program';
import { numel } from '../../src/engine/shape';
import type { SamplerProgram } from '../../src/sampler/program';
import { noiseLevels, type SchedulerConfig } from '../../src/sampler/scheduler_config';
import type { Picture } from './view';

/** `sample` is x_t; `x0` and `epsilon` are what the model makes of it. */
export type Quantity = 'sample' | 'x0' | 'epsilon';

/** The most that trajectories of one run may take; longer ones keep every second, third, … step. */
const budget = 256 * 2 ** 20;

interface Source {
  readonly sampleView: BufferView;
  readonly x0View: BufferView | undefined;
}

export class Trajectory {
  private readonly samples: GPUBuffer;
  private readonly predictions: GPUBuffer;
  private readonly bytes: number;
  private readonly every: number;
  private readonly levels: readonly (readonly [signal: number, noise: number])[];
  readonly total: number;
  /** Steps kept so far. */
  done = -1;

  constructor(
    private readonly engine: Engine,
    readonly shape: readonly [number, number, number, number],
    readonly program: SamplerProgram,
    scheduler: SchedulerConfig,
  ) {
    this.bytes = numel(shape) * 4;
    this.total = program.steps.length;
    const { maxStorageBufferBindingSize: binding, maxBufferSize } = engine.profile.limits;
    const limit = Math.min(budget, binding, maxBufferSize);
    this.every = Math.max(1, Math.ceil((this.total + 1) / Math.max(1, Math.floor(limit / this.bytes))));
    const kept = this.place(this.total) + 1;
    this.samples = engine.createBuffer('trajectory.samples', kept * this.bytes, 128 | 8 | 4); // STORAGE | COPY_DST | COPY_SRC
    this.predictions = engine.createBuffer('trajectory.x0', kept * this.bytes, 128 | 8 | 4);
    this.levels = noiseLevels(scheduler, program).slice(-this.total);
  }

  private place(step: number): number {
    return Math.ceil(step / this.every);
  }

  /** Copies the state after `step` steps; to be called from `onQueued`. The predicted x0 of step i belongs to x_t before it. */
  keep(step: number, { sampleView, x0View }: Source): void {
    this.done = step;
    const { device } = this.engine;
    const encoder = device.createCommandEncoder();
    const copy = (view: BufferView, to: GPUBuffer, at: number) => encoder.copyBufferToBuffer(view.buffer, view.offset, to, at * this.bytes, this.bytes);
    if (step % this.every === 0 || step === this.total) copy(sampleView, this.samples, this.place(step));
    if (step > 0 && x0View && ((step - 1) % this.every === 0 || step === this.total)) copy(x0View, this.predictions, this.place(step - 1));
    device.queue.submit([encoder.finish()]);
  }

  /** Noise level at `step`: x_t = signal·x_0 + noise·ε. After the last step there is none. */
  level(step: number): { readonly timestep: number; readonly signal: number; readonly noise: number; readonly snr: number } {
    if (step >= this.total) return { timestep: 0, signal: 1, noise: 0, snr: Infinity };
    const [signal, noise] = this.levels[step]!;
    return { timestep: this.program.steps[step]!.timestep, signal, noise, snr: (signal / noise) ** 2 };
  }

  /** What to draw of `step`, from 0 (noise) to `total` (the result). */
  picture(step: number, quantity: Quantity): Picture {
    const at = Math.max(0, Math.min(step, Math.max(this.done, 0)));
    const [count, channels, height, width] = this.shape;
    const sample = { buffer: this.samples, offset: this.place(at) * this.bytes };
    const x0 = { buffer: this.predictions, offset: this.place(Math.min(at, Math.max(this.done - 1, 0))) * this.bytes };
    const last = at >= this.total;
    const common = { count, channels: channels === 2 ? 1 : Math.min(channels, 4), height, width, strides: [channels * height * width, height * width, width, 1] as const };
    const { signal, noise } = this.level(Math.min(at, this.total - 1));
    if (quantity === 'epsilon') return { ...common, a: sample, b: x0, factors: [1 / noise, -signal / noise], range: [-3, 3] };
    if (quantity === 'x0' && !last) return { ...common, a: x0 };
    // Samplers in σ hold x_0 + σ·ε: shown as the mixture that the model sees.
    const spread = last ? 1 : 1 / Math.hypot(signal, noise);
    return { ...common, a: sample, factors: [spread, 0], range: last ? [-1, 1] : [-1 - 0.8 * Math.min(1, noise * spread), 1 + 0.8 * Math.min(1, noise * spread)] };
  }

  /** Host copy of what {@link picture} shows, [N,C,H,W] in [0,1]. */
  async read(step: number, quantity: Quantity): Promise<Float32Array> {
    const { a, b, factors = [1, 0], range = [-1, 1] } = this.picture(step, quantity);
    const first = new Float32Array(await this.engine.readBuffer(a, this.bytes));
    const second = b && factors[1] !== 0 ? new Float32Array(await this.engine.readBuffer(b, this.bytes)) : undefined;
    return first.map((value, i) => Math.min(Math.max((value * factors[0] + (second ? second[i]! * factors[1] : 0) - range[0]) / (range[1] - range[0]), 0), 1));
  }

  destroy(): void {
    this.engine.destroyBuffer(this.samples);
    this.engine.destroyBuffer(this.predictions);
  }
}
