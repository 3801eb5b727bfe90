/** Reading diffusers' JSON configs strictly: each key once, each value checked, whatever is left over is an error. */
import { BruitError } from '../engine/errors';

/**
 * Most that a config may ask for: published models have up to 48 layers in a row and 250,000 words. A damaged number must not build graphs or tables for
 * hours, before the weights are compared with it.
 */
const most = (key: string): number => (key.includes('layers') ? 100 : /seed|steps|every/.test(key) ? Infinity : 1e6);

export class ConfigReader {
  private readonly left: Set<string>;
  private readonly json: Readonly<Record<string, unknown>>;

  constructor(
    json: unknown,
    private readonly file: string,
    className: string,
  ) {
    if (typeof json !== 'object' || json === null || Array.isArray(json)) throw new BruitError('config', `${file}: a config must be a JSON object`);
    this.json = json as Record<string, unknown>;
    // Keys with an underscore are notes of diffusers' own (_diffusers_version, _name_or_path).
    this.left = new Set(Object.keys(this.json).filter((k) => !k.startsWith('_')));
    const named = this.json._class_name;
    if (named !== undefined && named !== className) throw new BruitError('config', `${file}: _class_name is ${JSON.stringify(named)}, this loader builds ${className}`);
  }

  fail(message: string): never {
    throw new BruitError('config', `${this.file}: ${message}`);
  }

  private take(key: string): unknown {
    this.left.delete(key);
    return Object.hasOwn(this.json, key) ? this.json[key] : undefined;
  }

  private wrong(key: string, value: unknown, wanted: string): never {
    return this.fail(`"${key}" is ${JSON.stringify(value)}, but must be ${wanted}`);
  }

  number(key: string, fallback: number): number {
    const v = this.take(key) ?? fallback;
    if (typeof v !== 'number' || !Number.isFinite(v)) this.wrong(key, v, 'a number');
    return v;
  }

  integer(key: string, fallback: number, least = 1): number {
    const v = this.take(key) ?? fallback;
    if (!Number.isInteger(v) || (v as number) < least || (v as number) > most(key)) this.wrong(key, v, `an integer from ${least} to ${most(key)}`);
    return v as number;
  }

  nullableInteger(key: string, fallback: number | null): number | null {
    const v = this.take(key);
    if (v === undefined) return fallback;
    if (v === null) return null;
    if (!Number.isInteger(v) || (v as number) < 1 || (v as number) > most(key)) this.wrong(key, v, 'a positive integer or null');
    return v as number;
  }

  integers(key: string, fallback: readonly number[]): number[] {
    const v = this.take(key) ?? fallback;
    if (!Array.isArray(v) || v.length === 0 || !v.every((n) => Number.isInteger(n) && n > 0 && n <= most(key))) this.wrong(key, v, `a list of positive integers up to ${most(key)}`);
    return v as number[];
  }

  /** One positive integer for all resolutions, or one for each. */
  integerPerLevel(key: string, fallback: number | readonly number[], levels: number): number[] {
    const v = this.take(key) ?? fallback;
    const list = Array.isArray(v) ? v : new Array<unknown>(levels).fill(v);
    if (list.length !== levels || !list.every((n) => Number.isInteger(n) && n > 0 && n <= most(key))) this.wrong(key, v, `a positive integer, or a list of ${levels} (one for each of block_out_channels)`);
    return list as number[];
  }

  /** true or false for all resolutions, or one for each. */
  booleanPerLevel(key: string, fallback: boolean, levels: number): boolean[] {
    const v = this.take(key) ?? fallback;
    const list = Array.isArray(v) ? v : new Array<unknown>(levels).fill(v);
    if (list.length !== levels || !list.every((b) => typeof b === 'boolean')) this.wrong(key, v, `true, false, or a list of ${levels} (one for each of block_out_channels)`);
    return list as boolean[];
  }

  /** Whether the key holds a list. */
  isList(key: string): boolean {
    return Array.isArray(this.json[key]);
  }

  nullableBoolean(key: string, fallback: boolean | null): boolean | null {
    const v = this.take(key);
    if (v === undefined) return fallback;
    if (v !== null && typeof v !== 'boolean') this.wrong(key, v, 'true, false or null');
    return v;
  }

  nullableString(key: string): string | null {
    const v = this.take(key) ?? null;
    if (v !== null && typeof v !== 'string') this.wrong(key, v, 'a string or null');
    return v;
  }

  /** An entry that only one value is supported for; says what another would mean. */
  fixed(key: string, value: unknown, meaning: string): void {
    const v = this.take(key) ?? value;
    if (v !== value) this.fail(`"${key}" is ${JSON.stringify(v)}: ${meaning}`);
  }

  boolean(key: string, fallback: boolean): boolean {
    const v = this.take(key) ?? fallback;
    if (typeof v !== 'boolean') this.wrong(key, v, 'true or false');
    return v;
  }

  string(key: string, fallback: string): string {
    const v = this.take(key) ?? fallback;
    if (typeof v !== 'string') this.wrong(key, v, 'a string');
    return v;
  }

  choice<T extends string>(key: string, allowed: readonly T[], fallback: T): T {
    const v = this.take(key) ?? fallback;
    if (!allowed.includes(v as T)) this.wrong(key, v, `one of ${allowed.join(', ')}`);
    return v as T;
  }

  nullableChoice<T extends string>(key: string, allowed: readonly T[], fallback: T | null): T | null {
    const v = this.take(key);
    if (v === undefined) return fallback;
    if (v !== null && !allowed.includes(v as T)) this.wrong(key, v, `one of ${allowed.join(', ')} or null`);
    return v as T | null;
  }

  /** A list of choices; `strip` is a prefix that old checkpoints carry. */
  choices<T extends string>(key: string, allowed: readonly T[], fallback: readonly T[], { strip = '' } = {}): T[] {
    const v = this.take(key) ?? fallback;
    if (!Array.isArray(v) || v.length === 0) this.wrong(key, v, 'a list of block types');
    return (v as unknown[]).map((name) => {
      const bare = typeof name === 'string' && strip && name.startsWith(strip) ? name.slice(strip.length) : name;
      if (!allowed.includes(bare as T)) this.fail(`"${key}" holds ${JSON.stringify(name)}, known are ${allowed.join(', ')}`);
      return bare as T;
    });
  }

  /** `32` or `[height, width]`, or nothing. */
  size(key: string): readonly [number, number] | undefined {
    const v = this.take(key);
    if (v === undefined || v === null) return undefined;
    const pair = typeof v === 'number' ? [v, v] : v;
    if (!Array.isArray(pair) || pair.length !== 2 || !pair.every((n) => Number.isInteger(n) && n > 0)) this.wrong(key, v, 'a size or [height, width]');
    return pair as unknown as [number, number];
  }

  /** Entries that are known and without effect here. */
  ignore(...keys: readonly string[]): void {
    for (const key of keys) this.take(key);
  }

  /** Entries that are known, and supported only where they are absent or null. */
  absent(...keys: readonly string[]): void {
    for (const key of keys) if ((this.take(key) ?? null) !== null) this.fail(`"${key}" is set, which bruit does not support (yet)`);
  }

  /** Lists that must have one entry per resolution. */
  equalLengths(lists: Readonly<Record<string, readonly unknown[]>>): void {
    const lengths = Object.entries(lists).map(([k, v]) => `${k} has ${v.length}`);
    if (new Set(Object.values(lists).map((v) => v.length)).size > 1) this.fail(`these must have one entry per resolution each: ${lengths.join(', ')}`);
  }

  /** Fails on keys that nobody read. */
  finish(): void {
    if (this.left.size) this.fail(`unknown ${this.left.size === 1 ? 'entry' : 'entries'} ${[...this.left].map((k) => `"${k}"`).join(', ')}`);
  }
}
