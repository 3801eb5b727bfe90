import { describe, expect, test } from 'vitest';
import { learningRates, lrSchedulerTypes, type LrScheduleConfig, type LrSchedulerType } from '../../src/train/lr_schedule';
import { goldenJson } from '../helpers/golden';

interface Case {
  base_lr: number;
  num_warmup_steps: number;
  num_training_steps: number;
  polynomial: { lr_end: number; power: number };
  values: Record<string, number[]>;
}

describe('learning rates', () => {
  const golden = goldenJson<Case>('learning_rates', 'case.json');
  const base = { lr: golden.base_lr, num_warmup_steps: golden.num_warmup_steps, num_training_steps: golden.num_training_steps };
  const configs: Record<string, LrScheduleConfig> = {
    constant: { ...base, name: 'constant_with_warmup' },
    linear: { ...base, name: 'linear' },
    cosine: { ...base, name: 'cosine' },
    cosine_1_5_cycles: { ...base, name: 'cosine', num_cycles: 1.5 },
    polynomial: { ...base, name: 'polynomial', ...golden.polynomial },
  };

  test.each(Object.entries(golden.values))('%s agrees with diffusers', (name, values) => {
    const rates = learningRates(configs[name]!, values.length);
    // Cosine and power may differ by the last bit between C libraries; where the factor is near 0 that is relative to 1.
    values.forEach((value, i) => expect(Math.abs(rates[i]! - value), `step ${i}`).toBeLessThanOrEqual(4 * Number.EPSILON * Math.max(value, golden.base_lr)));
  });

  test('restarts jump back to the top, and stay at 0 after the end', () => {
    const rates = learningRates({ name: 'cosine_with_restarts', lr: 2, num_cycles: 3, num_training_steps: 30 }, 33);
    for (const top of [0, 10, 20]) expect(rates[top]).toBeCloseTo(2, 12);
    for (const bottom of [9, 19, 29]) expect(rates[bottom]).toBeLessThan(0.1);
    expect(Array.from(rates.slice(30))).toEqual([0, 0, 0]);
  });

  test('constant ignores a warm-up, every other schedule starts at 0 with one', () => {
    for (const name of lrSchedulerTypes) expect(learningRates({ name, lr: 1e-3, num_warmup_steps: 5 }, 10)[0], name).toBe(name === 'constant' ? 1e-3 : 0);
  });

  test('beyond the last step', () => {
    const after = (name: LrSchedulerType) => learningRates({ name, lr: 1, num_training_steps: 4 }, 7)[6]!;
    expect(after('linear')).toBe(0);
    expect(after('polynomial')).toBe(1e-7);
    expect(after('constant_with_warmup')).toBe(1);
  });

  test.each([
    [{ name: 'cosin', lr: 1 }, /"cosin" is unknown; known are constant/],
    [{ name: 'linear', lr: -1 }, /lr is -1/],
    [{ name: 'linear', lr: 1, num_warmup_steps: NaN }, /num_warmup_steps is NaN/],
    [{ name: 'polynomial', lr: 1e-8 }, /lr_end 1e-7 must be below lr/],
  ])('refuses %j', (config, message) => expect(() => learningRates(config as LrScheduleConfig, 10)).toThrow(message));
});
