import { readFileSync } from 'node:fs';
import { expect } from 'vitest';
import { BruitError } from '../../src/engine/errors';
import { openSafetensors, type TensorStore } from '../../src/io/safetensors';
import { bytesSource } from '../../src/io/source';

/** A safetensors file from a header's text (or bytes) and its data, well-formed or not. */
export function fileOf(header: string | Uint8Array, data: Uint8Array | number = 0): Uint8Array<ArrayBuffer> {
  const json = typeof header === 'string' ? new TextEncoder().encode(header) : header;
  const body = typeof data === 'number' ? new Uint8Array(data) : data;
  const out = new Uint8Array(8 + json.length + body.length);
  new DataView(out.buffer).setBigUint64(0, BigInt(json.length), true);
  out.set(json, 8);
  out.set(body, 8 + json.length);
  return out;
}

export function openBytes(bytes: Uint8Array, name = 'x.safetensors'): Promise<TensorStore> {
  return openSafetensors(bytesSource(bytes, name));
}

export const golden = (path: string): Uint8Array => readFileSync(new URL(`../goldens/${path}`, import.meta.url));

/** Awaits a rejection with a BruitError of this code, and returns its message. */
export async function messageOf(code: string, promise: Promise<unknown>): Promise<string> {
  const error = await promise.then(
    () => new Error('nothing was thrown'),
    (e: unknown) => e,
  );
  expect(error).toBeInstanceOf(BruitError);
  expect((error as BruitError).code).toBe(code);
  return (error as BruitError).message;
}
