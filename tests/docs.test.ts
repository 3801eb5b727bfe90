/** The documents against the code: snippets type-check, the op worked out in CONTRIBUTING.md passes its own tests, and what is named exists. */
import { existsSync, readFileSync } from 'node:fs';
import { mkdir, rm, writeFile } from 'node:fs/promises';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import ts from 'typescript';
import { afterAll, expect, test } from 'vitest';
import { Engine } from '../src/engine/device';
import type { OpTests } from '../src/engine/op';
import { testDevice } from './helpers/device';
import { opChecks } from './helpers/op_suite';

const root = resolve(fileURLToPath(new URL('..', import.meta.url)));
const documents = ['README.md', 'ARCHITECTURE.md', 'CONTRIBUTING.md', 'docs/tour.md'].map((name) => ({ name, text: readFileSync(join(root, name), 'utf8') }));

interface Snippet {
  /** Where it would lie: what its first line says (`// src/…`), else a name of its own. */
  readonly path: string;
  readonly text: string;
}

const snippets = (language: string): Snippet[] =>
  documents.flatMap(({ name, text }) =>
    [...text.matchAll(new RegExp(`^\`\`\`${language}\\n([^]*?)^\`\`\``, 'gm'))].map(([, code], i) => ({
      path: join(root, /^\/\/ ((?:src|shaders)\/\S+)$/m.exec(code!.split('\n')[0]!)?.[1] ?? `tests/${name}.${i}.ts`),
      text: code!,
    })),
  );

test('TypeScript snippets type-check', () => {
  const written = new Map(snippets('ts').map((s) => [s.path, s.text]));
  expect(written.size).toBeGreaterThan(3);
  const { config } = ts.readConfigFile(join(root, 'tsconfig.json'), (path) => ts.sys.readFile(path)) as { config: { compilerOptions: object } };
  const options: ts.CompilerOptions = {
    ...ts.convertCompilerOptionsFromJson(config.compilerOptions, root).options,
    paths: { bruit: [join(root, 'src/index.ts')], 'bruit/node': [join(root, 'src/node/index.ts')] },
  };
  const host = ts.createCompilerHost(options);
  const { fileExists, readFile, getSourceFile } = host;
  host.fileExists = (path) => written.has(path) || fileExists(path);
  host.readFile = (path) => written.get(path) ?? readFile(path);
  host.getSourceFile = (path, language, ...rest) => {
    const text = written.get(path);
    return text === undefined ? getSourceFile(path, language, ...rest) : ts.createSourceFile(path, text, language);
  };
  const program = ts.createProgram([...written.keys(), join(root, 'src/wgsl.d.ts'), join(root, 'src/wgsl_reflect.d.ts')], options, host);
  const errors = [...written.keys()].flatMap((path) => {
    const file = program.getSourceFile(path)!;
    return [...program.getSyntacticDiagnostics(file), ...program.getSemanticDiagnostics(file)].map(
      (d) => `${path}:${file.getLineAndCharacterOfPosition(d.start ?? 0).line + 1}: ${ts.flattenDiagnosticMessageText(d.messageText, ' ')}`,
    );
  });
  expect(errors).toEqual([]);
});

// Where the tests' own transformation reaches it, and git does not see it.
const scratch = join(root, 'out', `docs-${process.pid}`);
const engine = await Engine.create({ device: await testDevice() });
afterAll(async () => {
  engine.destroy();
  await rm(scratch, { recursive: true, force: true });
});

test('the op of CONTRIBUTING.md passes the checks that every op passes', async () => {
  const code = snippets('ts').find((s) => s.path.startsWith(join(root, 'src/engine/ops/')))!;
  const shader = snippets('wgsl').find((s) => s.path.startsWith(join(root, 'shaders/')))!;
  const place = (path: string) => join(scratch, path.slice(root.length + 1));
  // Its imports point into the repository, but for the shader that comes with it.
  const text = code.text.replace(/from '(\.[^']*)'/g, (_, to: string) => {
    const target = resolve(dirname(code.path), to);
    return `from '${target === shader.path ? place(target) : target}'`;
  });
  for (const [path, contents] of [[code.path, text], [shader.path, shader.text]] as const) {
    await mkdir(dirname(place(path)), { recursive: true });
    await writeFile(place(path), contents);
  }
  const { tests } = (await import(/* @vite-ignore */ pathToFileURL(place(code.path)).href)) as { tests: OpTests<never> };
  const checks = opChecks(tests, engine.profile);
  expect(checks.some((c) => c.name.endsWith('gradient'))).toBe(true);
  for (const check of checks) await check.run(engine);
});

test.each(documents)('files and scripts that $name names exist', ({ text }) => {
  const prose = text.replace(/^```[^]*?^```/gm, '');
  const missing = [
    ...[...prose.matchAll(/\]\(([^)#:]+)\)/g)].map(([, path]) => path!),
    ...[...prose.matchAll(/`((?:src|cli|bin|shaders|tests|scripts|recipes|judge|docs|models|\.ci)\/[\w./-]*)`/g)].map(([, path]) => path!),
  ].filter((path) => !existsSync(join(root, path)));
  expect(missing).toEqual([]);
  const { scripts } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as { scripts: Record<string, string> };
  const unknown = [...text.matchAll(/npm (?:run ([\w:]+)|(test)\b)/g)].map(([, script, tests]) => script ?? tests!).filter((name) => !(name in scripts));
  expect(unknown).toEqual([]);
});

test('the README shows the races that are in bench/results', async () => {
  // Scripts of bench/ have no types.
  const { readRaces, readmeSection } = (await import(pathToFileURL(join(root, 'bench/report.mjs')).href)) as { readRaces: () => Promise<unknown[]>; readmeSection: (races: unknown[]) => string };
  const races = await readRaces();
  expect(races.length).toBeGreaterThan(0);
  // `npm run bench:report` writes it.
  expect(documents[0]!.text).toContain(readmeSection(races));
});
