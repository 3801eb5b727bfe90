import type { Command } from 'commander';
import { version } from '../package.json';
import { measurePeak } from '../src/engine/peak';
import { formatTable } from '../src/engine/profiler';
import { adapterEnvironment, adapterVariable } from '../src/node/adapter';
import { packageVersion } from '../src/node/cache';
import { openEngine, print } from './engine';
import { showBytes, showInteger } from './format';

export function addInfo(program: Command): void {
  program
    .command('info')
    .description('adapters, their features and limits, and measured peak speed')
    .option('--no-peak', 'do not measure (a second or more)')
    .option('--json', 'print JSON')
    .addHelpText('after', '\nExamples:\n  bruit info\n  bruit info --adapter software --json')
    .action(async (options: { peak: boolean; json?: boolean }) => {
      const engine = await openEngine();
      const { device, profile } = engine;
      const peak = options.peak ? await measurePeak(engine) : undefined;
      const limits: Record<string, number> = {};
      // Getters of the prototype: Object.keys does not see them.
      for (const name in device.limits) {
        const value = device.limits[name as keyof GPUSupportedLimits];
        if (typeof value === 'number') limits[name] = value;
      }
      const features = [...device.features].sort();
      const adapters = await availableAdapters();
      engine.destroy();
      print(
        options.json,
        () => ({
          version,
          node: process.version,
          webgpu: packageVersion('webgpu'),
          platform: `${process.platform} ${process.arch}`,
          adapter: { name: profile.name, kind: profile.kind, driver: process.env[adapterVariable] ?? null },
          adapters,
          features,
          limits,
          peak: peak ? { f32_flops_per_second: peak.f32, f16_flops_per_second: peak.f16 ?? null, copy_bytes_per_second: peak.bandwidth } : null,
        }),
        () =>
          [
            `bruit ${version}, Node ${process.version}, Dawn (webgpu ${packageVersion('webgpu')}), ${process.platform} ${process.arch}`,
            `adapter   ${profile.name} (${profile.kind})`,
            ...(peak
              ? [
                  `peak      ${(peak.f32 / 1e9).toPrecision(4)} GFLOP/s f32${peak.f16 === undefined ? '' : `, ${(peak.f16 / 1e9).toPrecision(4)} GFLOP/s f16`} (multiply-add)`,
                  `copy      ${(peak.bandwidth / 1e9).toPrecision(4)} GB/s, read and written`,
                ]
              : []),
            `features  ${features.join(', ') || 'none'}`,
            '',
            'choices of --adapter',
            formatTable(adapters.map((a) => [`  ${a.kind}`, a.reason ?? 'available']), 2),
            '',
            'limits',
            formatTable(Object.entries(limits).sort(([a], [b]) => a.localeCompare(b)).map(([name, value]) => [`  ${name}`, /Size$/.test(name) && value >= 4096 ? showBytes(value) : showInteger(value)])),
          ].join('\n'),
      );
    });
}

/** Which drivers could be chosen on this machine, and why not the others. */
async function availableAdapters(): Promise<{ kind: string; available: boolean; reason?: string }[]> {
  // The choice made for this process must not hide a GPU from the probe.
  if (process.env[adapterVariable] !== 'gpu') for (const name of ['VK_ICD_FILENAMES', 'VK_DRIVER_FILES']) delete process.env[name];
  const kinds = ['gpu', 'swiftshader', 'lavapipe'] as const;
  return Promise.all(
    kinds.map(async (kind) => {
      try {
        await adapterEnvironment(kind);
        return { kind, available: true };
      } catch (error) {
        return { kind, available: false, reason: (error as Error).message };
      }
    }),
  );
}
