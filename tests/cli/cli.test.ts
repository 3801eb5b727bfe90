import { mkdir, readdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { bf16ToF32 } from '../../src/io/half';
import { writeSafetensors } from '../../src/io/safetensors';
import { goldenPath, loadGolden } from '../helpers/golden';
import { bruit, temporary } from './bruit';

describe('help', () => {
  test('lists the commands', async () => {
    const { code, stdout, stderr } = await bruit('--help');
    expect(code).toBe(0);
    expect(stderr).toBe('');
    for (const command of ['verify', 'bench', 'inspect', 'info']) expect(stdout).toMatch(new RegExp(`^  ${command} `, 'm'));
    expect(stdout).toContain('--adapter');
  });

  test.each(['verify', 'bench', 'inspect', 'info'])('%s --help shows examples and the adapter option', async (command) => {
    const { code, stdout } = await bruit(command, '--help');
    expect(code).toBe(0);
    expect(stdout).toMatch(new RegExp(`Examples:\\n  bruit ${command}`));
    expect(stdout).toContain('--adapter');
    expect((await bruit('help', command)).stdout).toBe(stdout);
  });

  test('version', async () => expect(await bruit('--version')).toMatchObject({ code: 0, stdout: expect.stringMatching(/^\d+\.\d+\.\d+\n$/) }));
});

describe('bad input is one line and exit 2', () => {
  test('everything that can be got wrong without a file', async () => {
    const commands = [['frobnicate'], ['inspect'], ['inspect', 'a', 'b'], ['inspect', 'x.safetensors', '--shape'], ['inspect', 'missing.safetensors'], ['verify'], ['verify', 'missing'], ['info', '--adapter', 'cuda'], ['bench', '--runs', 'many'], ['bench', 'no_such_op']];
    const seen: string[] = [];
    for (const args of commands) {
      const { code, stdout, stderr } = await bruit(...args);
      expect(stdout, args.join(' ')).toBe('');
      expect(stderr.split('\n').length, stderr).toBe(2);
      seen.push(`${args.join(' ')} → ${code} ${stderr.trim().replace(/there are .*/, 'there are …')}`);
    }
    expect(seen).toMatchInlineSnapshot(`
      [
        "frobnicate → 2 bruit: unknown command 'frobnicate'",
        "inspect → 2 bruit: missing required argument 'file'",
        "inspect a b → 2 bruit: too many arguments for 'inspect'. Expected 1 argument but got 2.",
        "inspect x.safetensors --shape → 2 bruit: unknown option '--shape'",
        "inspect missing.safetensors → 2 bruit: cannot open missing.safetensors: there is no such file or folder.",
        "verify → 2 bruit: missing required argument 'case_dir'",
        "verify missing → 2 bruit: cannot open missing: there is no such file or folder.",
        "info --adapter cuda → 2 bruit: unknown adapter "cuda": choose one of auto, gpu, software, swiftshader, lavapipe",
        "bench --runs many → 2 bruit: --runs many: must be a whole number of at least 1",
        "bench no_such_op → 2 bruit: no op with benchmark shapes is named like "no_such_op"; there are …",
      ]
    `);
  });

  test('no command at all shows the help on stderr', async () => {
    const { code, stdout, stderr } = await bruit();
    expect(code).toBe(2);
    expect(stdout).toBe('');
    expect(stderr).toContain('Commands:');
  });

  test('files that are not what they should be', async () => {
    const dir = await temporary();
    const files: Record<string, string | Uint8Array> = {
      'empty.safetensors': '',
      'page.safetensors': '<!doctype html><html><body>Not found</body></html>',
      'cut.safetensors': writeSafetensors([{ name: 'w', dtype: 'F32', shape: [4], data: new Float32Array(4) }]).slice(0, -3),
      'model.safetensors.index.json': '{"weight_map": {"w": "../w.safetensors"}}',
    };
    const seen: string[] = [];
    for (const [name, contents] of Object.entries(files)) {
      await writeFile(join(dir, name), contents);
      const { code, stdout, stderr } = await bruit('inspect', join(dir, name));
      expect(stdout).toBe('');
      seen.push(`${code} ${stderr.trimEnd().replaceAll(dir, 'DIR')}`);
    }
    expect(seen).toMatchInlineSnapshot(`
      [
        "2 bruit: DIR/empty.safetensors: truncated: 0 bytes, and the header's length alone takes 8",
        "2 bruit: DIR/page.safetensors: header length 8104636974849335612 is over the limit of 100000000 bytes. This looks like a web page: use the direct download address",
        "2 bruit: DIR/cut.safetensors: tensor "w": data_offsets [0,16] reach beyond the 13 data bytes of the file. Is it truncated?",
        "2 bruit: DIR/model.safetensors.index.json: weight_map gives tensor "w" the file "../w.safetensors"; a plain file name beside the index is wanted",
      ]
    `);
  });
});

describe('inspect', () => {
  test('statistics of every tensor, as JSON and as a table', async () => {
    const file = goldenPath('half_weights', 'io.safetensors');
    const { code, stdout } = await bruit('inspect', file, '--json');
    expect(code).toBe(0);
    const result = JSON.parse(stdout) as { tensors: { name: string; dtype: string; shape: number[]; elements: number; bytes: number; statistics: Record<string, number> }[] };
    const golden = loadGolden('half_weights', 'io.safetensors');
    expect(result.tensors.map((t) => t.name).sort()).toEqual([...golden.keys()].sort());
    for (const { name, dtype, shape, elements, bytes, statistics } of result.tensors) {
      const { data, ...rest } = golden.get(name)!;
      expect({ dtype, shape, elements, bytes }).toEqual({ ...rest, elements: data.length, bytes: data.length * 4 });
      const mean = data.reduce((a, b) => a + b, 0) / data.length;
      const variance = data.reduce((a, b) => a + (b - mean) ** 2, 0) / data.length;
      expect(statistics).toMatchObject({ min: Math.min(...data), max: Math.max(...data), not_finite: 0 });
      expect(statistics['mean']!).toBeCloseTo(mean, 6);
      expect(statistics['std']!).toBeCloseTo(Math.sqrt(variance), 6);
    }
    const table = (await bruit('inspect', file, '--filter', 'output')).stdout;
    expect(table.match(/^output_\w+ /gm)?.length).toBe(3);
    expect(table).not.toContain('timestep');
  });

  test('16-bit weights, shards, NaN, empty tensors and metadata', async () => {
    const dir = await temporary();
    const bits = Uint16Array.of(0x3f80, 0xbf00, 0x7fc0); // 1, -0.5, NaN in bfloat16
    await writeFile(join(dir, 'a.safetensors'), writeSafetensors([{ name: 'a', dtype: 'BF16', shape: [3], data: bits }], { format: 'pt' }));
    await writeFile(join(dir, 'b.safetensors'), writeSafetensors([{ name: 'b', dtype: 'F32', shape: [0, 2], data: new Float32Array(0) }]));
    const index = join(dir, 'model.safetensors.index.json');
    await writeFile(index, JSON.stringify({ weight_map: { a: 'a.safetensors', b: 'b.safetensors' } }));
    const result = JSON.parse((await bruit('inspect', index, '--json')).stdout);
    expect(result).toMatchObject({ metadata: { format: 'pt' }, elements: 3, bytes: 6 });
    const [one, minusHalf] = bf16ToF32(bits);
    expect(result.tensors).toMatchObject([{ name: 'a', dtype: 'BF16', statistics: { min: minusHalf, max: one, mean: 0.25, std: 0.75, not_finite: 1 } }, { name: 'b', shape: [0, 2], elements: 0 }]);
    expect(result.tensors[1].statistics).toBeUndefined();
    const text = (await bruit('inspect', index, '--no-statistics')).stdout;
    expect(text).toContain('metadata format: pt');
    expect(text).not.toContain('std');
  });
});

describe('info', () => {
  test('adapter, features, limits and peak', async () => {
    const { code, stdout } = await bruit('info', '--json');
    expect(code).toBe(0);
    const result = JSON.parse(stdout) as { adapter: { name: string; kind: string }; adapters: { kind: string }[]; features: string[]; limits: Record<string, number>; peak: Record<string, number> };
    expect(result.adapter.kind).toMatch(/^(gpu|software)$/);
    expect(result.limits['maxStorageBuffersPerShaderStage']).toBeGreaterThanOrEqual(8);
    expect(result.features).toBeInstanceOf(Array);
    expect(result.peak['f32_flops_per_second']).toBeGreaterThan(1e7);
    expect(result.peak['copy_bytes_per_second']).toBeGreaterThan(1e7);
    expect(result.adapters.map((a) => a.kind)).toEqual(['gpu', 'swiftshader', 'lavapipe']);
    const text = (await bruit('info', '--no-peak')).stdout;
    expect(text).toContain(result.adapter.name);
    expect(text).not.toContain('GFLOP/s');
  });
});

test('bench times kernels and compares them with the peak', async () => {
  const { code, stdout } = await bruit('bench', 'rms_norm', '--runs', '1', '--json');
  expect(code).toBe(0);
  const result = JSON.parse(stdout);
  expect(result.kernels.length).toBeGreaterThan(0);
  for (const kernel of result.kernels) {
    expect(kernel).toMatchObject({ op: expect.stringContaining('rms_norm'), variant: 'default' });
    expect(kernel.milliseconds).toBeGreaterThan(0);
    expect(kernel.share_of_peak).toBeCloseTo((kernel.flops / kernel.milliseconds / 1e-3 / result.peak.f32_flops_per_second), 6);
  }
});

test('a folder where a file is wanted, and the other way round', async () => {
  const dir = await temporary();
  await mkdir(join(dir, 'x.safetensors'));
  expect((await bruit('inspect', join(dir, 'x.safetensors'))).code).toBe(2);
  await writeFile(join(dir, 'file'), '');
  expect(await bruit('verify', join(dir, 'file'))).toMatchObject({ code: 2, stdout: '' });
  expect((await readdir(dir)).sort()).toEqual(['file', 'x.safetensors']);
});
