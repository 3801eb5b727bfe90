/** Learning-rate schedules under diffusers' names (`diffusers.optimization.get_scheduler`), as plain numbers made before training. */
import { BruitError } from '../engine/errors';

export const lrSchedulerTypes = ['constant', 'constant_with_warmup', 'linear', 'cosine', 'cosine_with_restarts', 'polynomial'] as const;
export type LrSchedulerType = (typeof lrSchedulerTypes)[number];

export interface LrScheduleConfig {
  readonly name: LrSchedulerType;
  /** Learning rate at full height. */
  readonly lr: number;
  /** Steps of the linear climb from 0; step 0 of a warm-up has learning rate 0. `constant` has no warm-up, as in diffusers. Default 0. */
  readonly num_warmup_steps?: number;
  /** Step at which the decay ends; default the number of steps asked for. */
  readonly num_training_steps?: number;
  /** `cosine`: periods of the cosine (default 0.5, down to 0 once). `cosine_with_restarts`: restarts (default 1). */
  readonly num_cycles?: number;
  /** `polynomial`: learning rate after the decay (default 1e-7). */
  readonly lr_end?: number;
  /** `polynomial`: exponent of the decay (default 1). */
  readonly power?: number;
}

/**
 * The learning rates of steps 0, 1, … steps−1, in float64 as PyTorch's LambdaLR computes them: lr · factor(step).
 * @throws BruitError `config` naming the entry that is out of range.
 */
export function learningRates(config: LrScheduleConfig, steps: number): Float64Array {
  const { name, lr, num_warmup_steps: warmup = 0, num_training_steps: total = steps } = config;
  if (!lrSchedulerTypes.includes(name)) throw new BruitError('config', `learning-rate schedule "${String(name)}" is unknown; known are ${lrSchedulerTypes.join(', ')}`);
  for (const [key, value] of Object.entries({ lr, num_warmup_steps: warmup, num_training_steps: total, steps, num_cycles: config.num_cycles ?? 0, lr_end: config.lr_end ?? 0, power: config.power ?? 0 })) {
    if (!(typeof value === 'number' && Number.isFinite(value) && value >= 0)) throw new BruitError('config', `learning-rate schedule ${name}: ${key} is ${String(value)}, but must be a number of at least 0`);
  }
  if (name === 'polynomial' && !(lr > (config.lr_end ?? 1e-7))) throw new BruitError('config', `learning-rate schedule polynomial: lr_end ${config.lr_end ?? 1e-7} must be below lr ${lr}`);
  const decay = decayOf(config, total);
  const climbs = name !== 'constant';
  return Float64Array.from({ length: steps }, (_, step) => lr * (climbs && step < warmup ? step / Math.max(1, warmup) : decay(step, (step - warmup) / Math.max(1, total - warmup))));
}

/** The factor after the warm-up, of the step and of the share `progress` of the decay that is behind it (beyond 1 after its end). */
function decayOf(config: LrScheduleConfig, total: number): (step: number, progress: number) => number {
  const { name, lr, num_warmup_steps: warmup = 0 } = config;
  switch (name) {
    case 'constant':
    case 'constant_with_warmup':
      return () => 1;
    case 'linear':
      return (step) => Math.max(0, (total - step) / Math.max(1, total - warmup));
    case 'cosine': {
      const { num_cycles: cycles = 0.5 } = config;
      return (_, progress) => Math.max(0, 0.5 * (1 + Math.cos(Math.PI * cycles * 2 * progress)));
    }
    case 'cosine_with_restarts': {
      const { num_cycles: cycles = 1 } = config;
      return (_, progress) => (progress >= 1 ? 0 : Math.max(0, 0.5 * (1 + Math.cos(Math.PI * ((cycles * progress) % 1)))));
    }
    case 'polynomial': {
      const { lr_end: end = 1e-7, power = 1 } = config;
      return (step, progress) => (step > total ? end / lr : ((lr - end) * (1 - progress) ** power + end) / lr);
    }
  }
}
