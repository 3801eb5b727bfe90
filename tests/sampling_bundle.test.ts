/** The sampling bundle: its weight, its own reader of shaders against wgsl_reflect, and its images against the library's. */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { beforeAll, describe, expect, it } from 'vitest';
import { WgslReflect } from 'wgsl_reflect/wgsl_reflect.module.js';
import { build, gzippedSize, root, samplingLimit } from '../scripts/build.mjs';
import { Engine } from '../src/engine/device';
import { specialise } from '../src/engine/shader';
import { WgslReflect as WgslLayout } from '../src/engine/wgsl_layout';
import { directory as modelFolder } from '../src/node/directory';
import { DDPMPipeline } from '../src/pipelines/ddpm';
import type * as sampling from '../src/sampling';
import { testDevice } from './helpers/device';

let path: string;
beforeAll(async () => {
  [path] = (await build(['sampling'])) as [string];
});

it('stays within its limit', () => {
  expect(gzippedSize(path)).toBeLessThanOrEqual(samplingLimit);
});

describe('wgsl_layout reads what wgsl_reflect reads', () => {
  const directory = join(root, 'shaders');
  for (const file of readdirSync(directory).filter((name) => name.endsWith('.wgsl'))) {
    it(file, () => {
      const text = specialise({ file, text: readFileSync(join(directory, file), 'utf8') });
      const plain = (reflected: WgslReflect | WgslLayout) =>
        reflected.entry.compute.map(({ name, resources }) => ({
          name,
          resources: resources
            .map((r) => {
              const type = r.type as unknown as { size: number; members: { name: string; offset: number; type: { name: string } }[] };
              const uniform = (r.resourceType as number) === 0;
              return {
                name: r.name, group: r.group, binding: r.binding, uniform,
                ...(uniform ? { size: Math.ceil(type.size / 16), members: type.members.map((m) => [m.name, m.offset, m.type.name]) } : { access: r.access }),
              };
            })
            .sort((a, b) => a.binding - b.binding),
        }));
      expect(plain(new WgslLayout(text))).toEqual(plain(new WgslReflect(text)));
    });
  }
});

it("gives the library's images", async () => {
  const bundle = (await import(/* @vite-ignore */ pathToFileURL(path).href)) as typeof sampling;
  const device = await testDevice();
  const options = { labels: [3, 8], steps: 3, seed: 5, scheduler: 'dpmpp' } as const;
  const folder = modelFolder(join(root, 'models', 'digits'));
  const expected = await (await DDPMPipeline.fromFolder(await Engine.create({ device }), folder)).generate(options);
  const actual = await (await bundle.DDPMPipeline.fromFolder(await bundle.Engine.create({ device }), folder)).generate(options);
  expect(actual.shape).toEqual(expected.shape);
  expect(Math.max(...actual.images.map((v, i) => Math.abs(v - expected.images[i]!)))).toBeLessThan(1e-5);
  expect(Math.max(...expected.images)).toBeGreaterThan(0.5);
});
