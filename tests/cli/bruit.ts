import { execFile } from 'node:child_process';
import { cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll } from 'vitest';
import { goldenPath } from '../helpers/golden';

export interface Exit {
  code: number;
  stdout: string;
  stderr: string;
}

const bin = fileURLToPath(new URL('../../bin/bruit.mjs', import.meta.url));

/** Runs the command line in a process of its own, under the adapter that this test run has. */
export function bruit(...args: string[]): Promise<Exit> {
  return new Promise((resolve) => {
    const env = { ...process.env, BRUIT_ADAPTER: process.env.BRUIT_ADAPTER_ACTIVE ?? 'software', NO_COLOR: '1', COLUMNS: '120' };
    execFile(process.execPath, [bin, ...args], { env, maxBuffer: 2 ** 26 }, (error, stdout, stderr) => {
      resolve({ code: error ? Number(error.code ?? 128) : 0, stdout, stderr });
    });
  });
}

const made: string[] = [];
afterAll(() => Promise.all(made.map((path) => rm(path, { recursive: true, force: true }))));

export async function temporary(): Promise<string> {
  const path = await mkdtemp(join(tmpdir(), 'bruit-test-'));
  made.push(path);
  return path;
}

/** A copy of a golden case, to be broken. */
export async function copyOfCase(name: string): Promise<string> {
  const path = join(await temporary(), name);
  await cp(goldenPath(name), path, { recursive: true });
  return path;
}

/** Adds `amount` to one element of an F32 tensor in a safetensors file. */
export async function perturb(file: string, tensor: string, amount: number): Promise<void> {
  const bytes = await readFile(file);
  const headerLength = Number(bytes.readBigUInt64LE(0));
  const header = JSON.parse(bytes.toString('utf8', 8, 8 + headerLength)) as Record<string, { data_offsets: [number, number] }>;
  const at = 8 + headerLength + header[tensor]!.data_offsets[0];
  bytes.writeFloatLE(bytes.readFloatLE(at) + amount, at);
  await writeFile(file, bytes);
}
