/** Learning rates of `case.json`: `values` by schedule name, from `base_lr`, `num_warmup_steps` and `num_training_steps`. */
import { BruitError } from '../engine/errors';
import { isJsonObject } from '../io/json';
import { learningRates, lrSchedulerTypes, type LrScheduleConfig, type LrSchedulerType } from '../train/lr_schedule';
import type { CaseReport } from './report';

export interface LearningRatesCase {
  readonly base_lr: number;
  readonly num_warmup_steps?: number;
  readonly num_training_steps?: number;
  readonly values: Readonly<Record<string, readonly number[]>>;
  /** Options of one schedule, under its name. */
  readonly [schedule: string]: unknown;
}

export const isLearningRatesCase = (json: unknown): json is LearningRatesCase => isJsonObject(json) && typeof json.base_lr === 'number' && isJsonObject(json.values);

/** Any way of writing a schedule's name: `cosine_1_5_cycles`, `cosine with warm-up`, `constant` (with a warm-up, if one is given). */
export function scheduleNamed(text: string, options: Readonly<Record<string, unknown>>, file: string): Omit<LrScheduleConfig, 'lr'> {
  const words = text.toLowerCase();
  const cycles = /(\d+)(?:_(\d+))?_cycles?/.exec(words) ?? /restarts?_(\d+)(?:_(\d+))?$/.exec(words);
  const name: LrSchedulerType | undefined = words.includes('restart') ? 'cosine_with_restarts' : words.includes('constant') ? (options.num_warmup_steps ? 'constant_with_warmup' : 'constant') : lrSchedulerTypes.find((type) => words.startsWith(type));
  if (!name) throw new BruitError('input', `${file}: learning-rate schedule "${text}" is unknown; known are ${lrSchedulerTypes.join(', ')}`);
  const numbers = ['num_warmup_steps', 'num_training_steps', 'num_cycles', 'lr_end', 'power'].filter((key) => typeof options[key] === 'number').map((key) => [key, options[key]]);
  return { ...(cycles && { num_cycles: Number(`${cycles[1]}.${cycles[2] ?? 0}`) }), ...(Object.fromEntries(numbers) as object), name };
}

/** Learning rates are computed on the host, in float64, and must agree to float64's last digits. */
export function verifyLearningRates(report: CaseReport, json: LearningRatesCase, file: string): void {
  report.kinds.push('learning rates');
  const { base_lr: lr, num_warmup_steps, num_training_steps, values } = json;
  for (const [name, expected] of Object.entries(values)) {
    const own = isJsonObject(json[name]) ? json[name] : {};
    const rates = learningRates({ ...scheduleNamed(name, { num_warmup_steps, num_training_steps, ...own }, file), lr }, expected.length);
    report.compareNumbers({ file, name, shape: [expected.length], data: rates, path: ['values', name] }, expected, (largest) => 1e-12 * largest);
  }
}
