import { check } from '../engine/errors';
import { predict } from './prediction';
import { combine, finishProgram, OUTPUT, SAMPLE, slot, type Linear, type SamplerProgram, type StepDraft } from './program';
import type { NoiseTables, SchedulerConfig } from './scheduler_config';
import { spacedTimesteps } from './schedules';

/** Slots: the sample at the start of a compound step, the Runge-Kutta sum, and a ring of the last three outputs. */
const START = 0;
const SUM = 1;
const ring = (n: number): number => 2 + (n % 3);

/** Linear multi-step weights by number of outputs known, newest first (PNDM eq. 12 and its lower orders). */
const ADAMS_BASHFORTH = [[1], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24]];

/**
 * Pseudo numerical methods (Liu et al. 2022). Three Runge-Kutta steps of four evaluations each start the multi-step method, or, with skip_prk_steps
 * (PLMS, as Stable Diffusion runs it), one step evaluated twice.
 */
export function pndm(config: SchedulerConfig, { alphasCumprod }: NoiseTables, { numInferenceSteps: count, begin = 0 }: { numInferenceSteps: number; begin?: number }): SamplerProgram {
  const { num_train_timesteps: total, prediction_type, skip_prk_steps: skipPrk } = config;
  const stride = Math.floor(total / count);
  const half = Math.floor(stride / 2);
  const ascending = spacedTimesteps(config.timestep_spacing, total, count, config.steps_offset, true).reverse();
  check(skipPrk || count >= 4, 'config', () => `numInferenceSteps is ${count}; allowed: at least 4 with skip_prk_steps false (the first three are Runge-Kutta steps)`);
  check(skipPrk || begin === 0, 'config', () => 'a run cannot begin within the Runge-Kutta steps of PNDM; set skip_prk_steps');
  const finalAlphaBar = config.set_alpha_to_one ? 1 : alphasCumprod[0]!;

  /** PNDM eq. 11: from t to s along the direction of `output`, which is epsilon or v. */
  const transfer = (sample: Linear, t: number, s: number, output: Linear): Linear => {
    const a = alphasCumprod.at(t);
    check(a !== undefined, 'config', () => `the PNDM steps reach timestep ${t}, beyond num_train_timesteps ${total}; use timestep_spacing "leading" with a steps_offset below ${stride}`);
    const b = s >= 0 ? alphasCumprod[s]! : finalAlphaBar;
    const epsilon = prediction_type === 'epsilon' ? output : combine([Math.sqrt(a), output], [Math.sqrt(1 - a), sample]);
    return combine([Math.sqrt(b / a), sample], [-(b - a) / (a * Math.sqrt(1 - b) + Math.sqrt(a * (1 - a) * b)), epsilon]);
  };
  const preview = (t: number): Linear => predict(prediction_type, alphasCumprod[t]!).x0;

  const drafts: StepDraft[] = [];
  /** Outputs kept so far; the newest lies in ring(kept - 1). */
  let kept = 0;
  const past = (back: number): Linear => slot(ring(kept - back));
  if (!skipPrk) {
    const fine = ascending.slice(-4).flatMap((t) => [t, t + half]).slice(0, -1);
    const visits = fine.flatMap((t) => [t, t]).slice(1, -1).reverse();
    visits.forEach((timestep, i) => {
      const from = visits[i - (i % 4)]!;
      const to = timestep - (i % 2 ? 0 : half);
      const start = i % 4 === 0 ? SAMPLE : slot(START);
      const move = (output: Linear): Linear => transfer(start, from, to, output);
      const draft = { timestep, predX0: preview(timestep) };
      if (i % 4 === 0) {
        drafts.push({ ...draft, next: move(OUTPUT), store: [{ slot: START, value: SAMPLE }, { slot: ring(kept), value: OUTPUT }] });
        kept++;
      } else if (i % 4 < 3) {
        const sum = i % 4 === 1 ? combine([1 / 6, past(1)], [1 / 3, OUTPUT]) : combine([1, slot(SUM)], [1 / 3, OUTPUT]);
        drafts.push({ ...draft, next: move(OUTPUT), store: [{ slot: SUM, value: sum }] });
      } else drafts.push({ ...draft, next: move(combine([1, slot(SUM)], [1 / 6, OUTPUT])) });
    });
  }
  const visits = skipPrk ? [...ascending.slice(0, -1), ...ascending.slice(-2, -1), ...ascending.slice(-1)].reverse() : ascending.slice(0, -3).reverse();
  // A later begin starts the method anew there, as diffusers has it: its first time step is the one that is evaluated twice.
  visits.slice(begin).forEach((timestep, i) => {
    const draft = { timestep, predX0: preview(timestep) };
    if (skipPrk && i === 1) {
      const mean = combine([1 / 2, OUTPUT], [1 / 2, past(1)]);
      drafts.push({ ...draft, next: transfer(slot(START), timestep + stride, timestep, mean) });
      return;
    }
    const weights = ADAMS_BASHFORTH[Math.min(kept, 3)]!;
    const output = combine(...weights.map((w, back) => [w, back === 0 ? OUTPUT : past(back)] as const));
    const store = [{ slot: ring(kept), value: OUTPUT }];
    if (skipPrk && i === 0) store.push({ slot: START, value: SAMPLE });
    drafts.push({ ...draft, next: transfer(SAMPLE, timestep, timestep - stride, output), store });
    kept++;
  });
  const program = finishProgram(config._class_name, drafts, {});
  return { ...program, timesteps: [...visits.slice(0, begin), ...program.timesteps] };
}
