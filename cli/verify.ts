import { existsSync } from 'node:fs';
import { join, resolve } from 'node:path';
import type { Command } from 'commander';
import { BruitError } from '../src/engine/errors';
import { safetensorsChunks } from '../src/io/safetensors';
import { openFolder } from '../src/node/case_folder';
import { writableFolder, writeFileAtomic } from '../src/node/files';
import { reportTable, showError, type CaseReport, type Comparison, type Recomputed } from '../src/verify/report';
import { verifyCase } from '../src/verify/verify';
import { openEngine, print } from './engine';

export function addVerify(program: Command): void {
  program
    .command('verify')
    .description('recompute a reference case on the GPU and compare it with its records')
    .argument('<case_dir>', 'folder with config.json, case.json, cases.json or runs/runs.json, and its safetensors files')
    .option('--out <dir>', 'write every recomputed tensor there, under the names of the case')
    .option('--overwrite', 'let --out replace files')
    .option('--json', 'print JSON')
    .addHelpText(
      'after',
      `
A case is a model with its weights and io.safetensors (forward pass with activations) or a record of training steps;
recorded runs of a pipeline (runs/runs.json); a set of scheduler trajectories, of hybrid losses, of learning rates, of Fréchet distances, of tokenized texts, or of
torch's random draws; its own JSON says which. Exits with 1 if any tensor is further from its record than allowed, and
names the first that diverges in order of execution.

Examples:
  bruit verify tests/goldens/unet2d_class_cond
  bruit verify converted_checkpoint/ --out recomputed/ --json`,
    )
    .action(async (dir: string, options: { out?: string; overwrite?: boolean; json?: boolean }) => {
      const folder = await openFolder(dir);
      try {
        if (options.out !== undefined) {
          checkOutput(dir, options.out, folder.files, options.overwrite === true);
          await writableFolder(options.out);
        }
        const engine = await openEngine();
        const report = await verifyCase(engine, folder);
        if (options.out !== undefined) await writeRecomputed(report, options.out, options.overwrite === true);
        print(options.json, () => toJson(dir, engine.profile.name, report), () => toText(dir, engine.profile.name, report));
        engine.destroy();
        if (!report.ok) process.exitCode = 1;
      } finally {
        await folder.close();
      }
    });
}

/** Before anything is computed: a case must not be overwritten by its own check, nor a file by accident. */
function checkOutput(dir: string, out: string, files: readonly string[], overwrite: boolean): void {
  if (resolve(dir) === resolve(out)) throw new BruitError('input', `--out ${out} is the case itself; choose another folder`);
  const taken = overwrite ? undefined : files.find((file) => /\.safetensors$|^case\.json$/.test(file) && existsSync(join(out, file)));
  if (taken !== undefined) throw new BruitError('input', `${join(out, taken)} exists already; nothing was written. Choose another folder, or pass --overwrite`);
}

async function writeRecomputed(report: CaseReport, out: string, overwrite: boolean): Promise<void> {
  for (const file of new Set(report.recomputed.map((t) => t.file))) {
    const tensors = report.recomputed.filter((t) => t.file === file);
    // Numbers of a JSON file go back into one, to the same places.
    const contents = file.endsWith('.json') ? `${JSON.stringify(jsonOf(tensors), null, 1)}\n` : safetensorsChunks(tensors);
    await writeFileAtomic(join(out, file), contents, { overwrite });
  }
}

interface JsonTree {
  [key: string | number]: unknown;
}

function jsonOf(tensors: readonly Recomputed[]): JsonTree {
  const root: JsonTree = {};
  for (const { name, path = [name], shape, data } of tensors) {
    let node = root;
    path.slice(0, -1).forEach((key, i) => (node = (node[key] ??= typeof path[i + 1] === 'number' ? [] : {}) as JsonTree));
    node[path[path.length - 1]!] = nested([...data], shape);
  }
  return root;
}

/** Rows of rows, a bare number for the shape []. */
function nested(data: readonly number[], [size, ...rest]: readonly number[]): unknown {
  if (size === undefined) return data[0];
  const step = data.length / size;
  return rest.length ? Array.from({ length: size }, (_, i) => nested(data.slice(i * step, (i + 1) * step), rest)) : data;
}

const moduleOf = ({ name }: Comparison): string => name.replace(/^act[^.]*\./, '');

function toText(dir: string, adapter: string, report: CaseReport): string {
  const misses = report.comparisons.filter((c) => !c.ok).length;
  const first = report.firstDivergence;
  return [
    `${dir}: ${report.kinds.join(', ')} on ${adapter}`,
    '',
    reportTable(report),
    ...(report.notRecomputed.length ? ['', 'not recomputed:', ...report.notRecomputed.map((t) => `  ${t.file}: ${t.name} (${t.reason})`)] : []),
    '',
    first
      ? `MISS: ${misses} of ${report.comparisons.length} tensors differ. The first to diverge is ${moduleOf(first)}: max|a-b| ${showError(first.difference)}, allowed ${showError(first.allowed)}.`
      : `ok: ${report.comparisons.length} tensors agree.`,
  ].join('\n');
}

function toJson(dir: string, adapter: string, report: CaseReport): object {
  const first = report.firstDivergence;
  return {
    case: dir,
    adapter,
    verified: report.kinds,
    ok: report.ok,
    first_divergence: first ? moduleOf(first) : null,
    tensors: report.comparisons.map((c) => ({
      file: c.file,
      name: c.name,
      shape: c.shape,
      ...(c.sample !== undefined && { sample: c.sample }),
      max_abs_difference: c.difference,
      relative_difference: c.largest > 0 ? c.difference / c.largest : null,
      allowed: c.allowed,
      verdict: c.ok ? 'ok' : 'miss',
    })),
    not_recomputed: report.notRecomputed,
  };
}
