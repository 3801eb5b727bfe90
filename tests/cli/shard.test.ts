/** Jobs that several workers share: the images of one machine, in files that merge, from the commands of `examples/cluster`. */
import { existsSync } from 'node:fs';
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { parse } from 'yaml';
import { bundledModel } from '../../cli/sample';
import { shard, shardRange } from '../../cli/shard';
import { Engine } from '../../src/engine/device';
import { openTensorFile } from '../../src/node/file_source';
import { directory } from '../../src/node/directory';
import { DDPMPipeline } from '../../src/pipelines/ddpm';
import { testDevice } from '../helpers/device';
import { bruit, temporary } from './bruit';

const example = (name: string): Promise<string> => readFile(new URL(`../../examples/cluster/${name}`, import.meta.url), 'utf8');

test('shards cover every image once and differ by at most one', () => {
  for (const [total, count] of [[10000, 16], [7, 3], [5, 16], [16, 16], [1, 1]] as const) {
    const ranges = Array.from({ length: count }, (_, index) => shardRange({ index, count }, total));
    expect(ranges.flatMap(([from, to]) => Array.from({ length: to - from }, (_, i) => from + i))).toEqual(Array.from({ length: total }, (_, i) => i));
    const sizes = ranges.map(([from, to]) => to - from);
    expect(Math.max(...sizes) - Math.min(...sizes)).toBeLessThanOrEqual(1);
  }
  expect(shard('3/16')).toEqual({ index: 3, count: 16 });
});

test('any set of workers makes the bits of one machine', async () => {
  const engine = await Engine.create({ device: await testDevice() });
  const pipeline = await DDPMPipeline.fromFolder(engine, directory(bundledModel()));
  // DDPM draws noise at every step; guidance doubles the batch; 7 images fill no batch of 3.
  const job = { count: 7, labels: [3, 1, 4, 1, 5], steps: 2, scheduler: 'ddpm', guidanceScale: 1.5, seed: 11, sampleOffset: 5, batchSize: 3 } as const;
  const whole = await pipeline.generate(job);
  const per = whole.images.length / 7;
  for (const count of [2, 4]) {
    for (let index = 0; index < count; index++) {
      const range = shardRange({ index, count }, 7);
      const part = await pipeline.generate({ ...job, range });
      expect(part.shape[0]).toBe(range[1] - range[0]);
      expect(part.images).toEqual(whole.images.slice(range[0] * per, range[1] * per));
      expect(part.labels).toEqual(whole.labels!.slice(...range));
    }
  }
  await expect(pipeline.generate({ ...job, range: [3, 8] })).rejects.toThrow('range 3 to 8 is no part of the 7 images');
  pipeline.destroy();
  engine.destroy();
});

describe('examples', () => {
  test('the Kubernetes job: its workers fill one folder', async () => {
    const { spec } = parse(await example('kubernetes-job.yaml')) as { spec: { completionMode: string; completions: number; template: { spec: { containers: { command: string[]; volumeMounts: { name: string; mountPath: string }[] }[]; volumes: { name: string }[] } } } };
    expect(spec).toMatchObject({ completionMode: 'Indexed', completions: 16 });
    const { command, volumeMounts: [mount] } = spec.template.spec.containers[0]!;
    expect(command.at(-1)).toBe(mount!.mountPath);
    expect(spec.template.spec.volumes.map((v) => v.name)).toContain(mount!.name);
    const out = await temporary();
    const run = (index: number) => {
      const [name, ...args] = command.map((arg) => arg.replace('$(JOB_COMPLETION_INDEX)', String(index)).replace(/^\/samples$/, out));
      expect(name).toBe('bruit');
      // The later of two values counts.
      return bruit(...args, '--n', '24', '--steps', '1');
    };
    expect(await run(0)).toMatchObject({ code: 0, stdout: `1 images in ${out}\n` });
    expect(await run(spec.completions - 1)).toMatchObject({ code: 0, stdout: `2 images in ${out}\n` });
    expect((await readdir(out)).sort()).toEqual(['00000.png', '00022.png', '00023.png']);
    // The folder's own number is what its label follows from.
    expect((await readFile(join(out, '00023.png'))).toString('latin1')).toMatch(/tEXtlabel\x003.{4}/s);
    expect((await run(spec.completions)).stderr).toMatch(/^bruit: .*Shards count from 0: the last of 16 is 15\/16\.\n$/);
  });

  test('the Slurm array', async () => {
    const script = await example('slurm-array.sbatch');
    expect(script).toMatch(/^#!\/bin\/bash\n/);
    const [, last] = /^#SBATCH --array=0-(\d+)$/m.exec(script)!;
    const command = /^npx bruit (.*)$/m.exec(script)![1]!;
    const args = command.replace(/"([^"]*)"/g, '$1').replace('$SLURM_ARRAY_TASK_ID', last!).replace('$SLURM_ARRAY_TASK_COUNT', String(Number(last) + 1)).split(' ');
    const out = join(await temporary(), 'samples.safetensors');
    expect(await bruit(...args, '--n', '10', '--steps', '1', '--batch', '2', '--out', out)).toMatchObject({ code: 0 });
    const store = await openTensorFile(out.replace('.safetensors', '-00015-of-00016.safetensors'));
    expect(store.tensors.get('images')!.shape).toEqual([1, 1, 28, 28]);
    expect([...(await store.readI32('labels'))]).toEqual([9]);
    expect(JSON.parse(store.metadata['parameters']!)).toMatchObject({ range: [9, 10] });
    await store.close();
  });

  test('a grid is refused, and a shard without images writes nothing', async () => {
    const out = await temporary();
    const grid = await bruit('sample', '--n', '4', '--labels', '1', '--shard', '0/2', '--out', join(out, 'grid.png'));
    expect(grid).toMatchObject({ code: 2, stdout: '', stderr: `bruit: --shard: ${join(out, 'grid.png')} is one grid, which several workers cannot share; give a folder or a .safetensors file as --out\n` });
    expect(await bruit('sample', '--n', '2', '--labels', '1', '--shard', '0/4', '--out', join(out, 'few'))).toMatchObject({ code: 0, stdout: 'no images for this shard\n' });
    expect(existsSync(join(out, 'few'))).toBe(false);
  });
});
