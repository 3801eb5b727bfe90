import { readFile, readdir } from 'node:fs/promises';
import { join } from 'node:path';

const marks = /^\/\/ (include \S+|prologue|end prologue|epilogue|end epilogue)$/;
const identifier = /(?<![.\w@])[A-Za-z_]\w*/g;
const moduleName = /^(?:(?:@\w+(?:\([^()]*\))?\s*)*)(?:fn|struct|alias|const|override|var(?:<[^>]*>)?)\s+(\w+)/gm;

/** Names that stand at the top of any of the texts: no local may get one of these. */
export const moduleNames = (texts) => new Set(texts.flatMap((text) => [...text.matchAll(moduleName)].map(([, name]) => name)));

/**
 * Short names for the functions and private variables of all shaders, by path: the same in each, since they include one another. Entry points,
 * `epilogue` and the functions of lib/pointwise.wgsl keep theirs: TypeScript names them. So do fields of a struct, and with them what shares their name.
 */
export function shortModuleNames(texts) {
  const kept = new Set(['epilogue', ...moduleNames([texts.get('lib/pointwise.wgsl') ?? ''])]);
  for (const text of texts.values()) {
    for (const [, name] of text.matchAll(/@compute[^]*?\bfn (\w+)/g)) kept.add(name);
    for (const [struct] of text.matchAll(/^struct [^]*?^\}/gm)) for (const [, field] of struct.matchAll(/(\w+)\s*:/g)) kept.add(field);
  }
  const names = new Set([...texts.values()].flatMap((text) => [...text.matchAll(/^(?:fn|var<(?:private|workgroup)>) (\w+)/gm)].map(([, name]) => name)));
  return new Map([...names].filter((name) => !kept.has(name)).map((name, i) => [name, `_${i.toString(36)}`]));
}

/**
 * WGSL without what only people read: comments, space, and the long names of functions, parameters and variables. Marks (`// include` and the like)
 * and prologues, which the engine edits line by line, stay. `taken` are {@link moduleNames} of all shaders, `short` their {@link shortModuleNames}.
 */
export function minifyWgsl(text, taken, short = new Map()) {
  const lines = text
    .split('\n')
    .map((line) => (marks.test(line) ? line : line.replace(/\/\/.*$/, '').trimEnd()))
    .filter((line) => line.trim());
  return shortenLocals(lines.join('\n'), taken)
    .split('\n')
    .map((line) => (marks.test(line) ? line : line.replace(identifier, (name) => short.get(name) ?? name)))
    .map((line) => (/^(\/\/|const |alias |enable )/.test(line) ? line : line.trim().replace(/\s*([-+*/%=<>!&|^?:;,(){}[\]])\s*/g, '$1')))
    .join('\n');
}

/** A function begins a line, perhaps after attributes; it ends on that line, or with a brace that begins another. */
function shortenLocals(text, taken) {
  return text.replace(/^(?:@[^\n]*\s)?fn (?:[^\n]*\}$|[^]*?^\})/gm, (body) => {
    const [, parameters] = /fn \w+\s*\(([^]*?)\)\s*(?:->[^{]*)?\{/.exec(body) ?? ['', ''];
    const locals = new Set([...parameters.matchAll(/(\w+)\s*:/g), ...body.matchAll(/\b(?:let|var(?:<[^>]*>)?|const)\s+(\w+)/g)].map(([, name]) => name).filter((name) => !taken.has(name)));
    const used = new Set([...taken, ...(body.match(identifier) ?? []).filter((name) => !locals.has(name))]);
    const names = shortNames(used);
    const short = new Map([...locals].map((name) => [name, names.next().value]));
    return body.replace(identifier, (name) => short.get(name) ?? name);
  });
}

const keywords = new Set(['as', 'do', 'fn', 'if', 'in', 'is', 'of', 'or']);

function* shortNames(used) {
  const letters = 'abcdefghijklmnopqrstuvwxyz';
  for (let n = 0; ; n++) {
    const name = n < 26 ? letters[n] : letters[Math.floor(n / 26) - 1] + letters[n % 26];
    if (!used.has(name) && !keywords.has(name)) yield name;
  }
}

/**
 * esbuild plugin for bundles that only sample: op files lose their tests, gradients and documentation, shaders what only people read, and
 * wgsl_reflect makes way for src/engine/wgsl_layout.ts.
 */
export function samplingOnly(root) {
  return {
    name: 'sampling-only',
    async setup(build) {
      const { default: ts } = await import('typescript');
      build.onResolve({ filter: /^wgsl_reflect\// }, () => ({ path: join(root, 'src/engine/wgsl_layout.ts') }));
      const directory = join(root, 'shaders');
      const texts = new Map();
      for (const name of await readdir(directory, { recursive: true })) if (name.endsWith('.wgsl')) texts.set(name, await readFile(join(directory, name), 'utf8'));
      const taken = moduleNames([...texts.values()]);
      const short = shortModuleNames(texts);
      build.onLoad({ filter: /\.wgsl$/ }, async ({ path }) => ({ contents: minifyWgsl(await readFile(path, 'utf8'), taken, short), loader: 'text' }));
      // Snippets that only gradients include.
      build.onLoad({ filter: /shader_library\.ts$/ }, async ({ path }) => ({ contents: (await readFile(path, 'utf8')).replace(/^.*(_grad|_dout).*\n/gm, ''), loader: 'ts' }));
      build.onLoad({ filter: /[\\/]src[\\/]engine[\\/]ops[\\/]\w+\.ts$/ }, async ({ path }) => ({ contents: strip(ts, path, await readFile(path, 'utf8')), loader: 'ts' }));
    },
  };
}

const replacements = {
  doc: "doc: ''",
  grad: "grad: { notDifferentiable: 'this build only samples' }",
  // Of a row of the pointwise table.
  reference: 'reference: 0 as never',
  derivative: 'derivative: 0 as never',
};

/** Source of an op file whose op definitions and pointwise rows have no documentation, gradient or reference. */
function strip(ts, path, source) {
  const file = ts.createSourceFile(path, source, ts.ScriptTarget.ESNext, true);
  const cuts = [];
  const visit = (node) => {
    const definition = ts.isObjectLiteralExpression(node) && ((ts.isCallExpression(node.parent) && node.parent.expression.getText() === 'defineOp') || node.properties.some((p) => p.name?.getText() === 'wgsl'));
    for (const property of definition ? node.properties : []) {
      const name = property.name?.getText() ?? '';
      if (Object.hasOwn(replacements, name)) cuts.push([property.getStart(), property.end, replacements[name]]);
    }
    ts.forEachChild(node, visit);
  };
  visit(file);
  // Tables at the top of a file have no effects, but a bundler cannot know that of one with calls or spreads in it: as the result of a call marked
  // pure it goes where nothing refers to it.
  for (const statement of file.statements) {
    for (const { initializer } of ts.isVariableStatement(statement) ? statement.declarationList.declarations : []) {
      if (!initializer || ts.isArrowFunction(initializer)) continue;
      cuts.push([initializer.getStart(), initializer.getStart(), '/* @__PURE__ */ (() => ('], [initializer.end, initializer.end, '))()']);
    }
  }
  cuts.sort(([a], [b]) => a - b);
  return cuts.reverse().reduce((text, [from, to, by]) => text.slice(0, from) + by + text.slice(to), source);
}
