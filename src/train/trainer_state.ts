/** Reading `trainer_state.json` strictly: a damaged one must not become a run that goes on a little wrong. */
import { BruitError, check } from '../engine/errors';
import { controlSize } from '../engine/ops/optimizer';
import { isJsonObject, parseJson } from '../io/json';
import type { TrainerState } from './trainer';

/** @throws BruitError `checkpoint` naming the file and the entry. */
export function parseTrainerState(text: string, file: string): TrainerState {
  let json: unknown;
  try {
    json = parseJson(text);
  } catch (cause) {
    throw new BruitError('checkpoint', `${file} is not JSON (${(cause as Error).message}): this is not a training checkpoint`, { cause });
  }
  const at = (condition: unknown, what: string): void => check(condition, 'checkpoint', () => `${file}: ${what}. Resume from another checkpoint`);
  const whole = (v: unknown, most = Number.MAX_SAFE_INTEGER): v is number => Number.isInteger(v) && (v as number) >= 0 && (v as number) <= most;
  if (!isJsonObject(json)) throw new BruitError('checkpoint', `${file} must be a JSON object`);
  const { step, counters, control, microStep, loader } = json;
  at(whole(step), '"step" is no whole number');
  at(Array.isArray(counters) && counters.length === 4 && counters.every((v) => whole(v, 0xffffffff)), '"counters" is no list of 4 whole numbers');
  at(Array.isArray(control) && control.length === controlSize && control.every((v) => typeof v === 'number' && Number.isFinite(v)), `"control" is no list of ${controlSize} numbers`);
  at(whole(microStep, 0xffffffff), '"microStep" is no whole number');
  at(isJsonObject(loader), '"loader" is no object');
  at((counters as number[])[0] === step, `"step" is ${step as number}, but "counters" begin with ${(counters as number[])[0]}`);
  return json as unknown as TrainerState;
}
