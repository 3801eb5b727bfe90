import { readFile, readdir } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { join, relative, sep } from 'node:path';
import { fileURLToPath } from 'node:url';
import { minifyShaders } from './minify_wgsl.mjs';

/** Constants of prologues that decide whether a kernel computes a gradient, and parameters of the ops' own functions that do. */
const gradientConstants = { GRADIENT: false };
const gradientParameters = new Set(['backward', 'gradient']);
/** What ops and rows of the pointwise table declare for gradients, tests and documentation. */
const unused = new Set(['weightInput', 'overParts', 'doc', 'grad', 'reference', 'derivative', 'domain', 'arity', 'integerInputs']);
/** Schedulers that no diffusers pipeline of an unconditional U-Net names. */
const otherSchedulers = new Set(['DDIMInverseScheduler', 'DPMSolverSinglestepScheduler', 'UnCLIPScheduler']);

/** What only tests and the search for NaNs ask of `compile`. */
const debugging = new Set(['probe', 'poison']);

/** Kernels for software adapters alone, `direct` ones serve there too; what only the tuner chooses; and what only f16 takes. */
const otherKernels = new Set(['broadcast', 'subgroup', 'tap_rows', 'few_rows', 'two_blocks', 'winograd', 'subgroup_matrix']);

/** What stands for modules that only packed weights need, or weights longer than a binding; and for a pass whose few dispatches less are not worth a kilobyte. */
const substitutes = {
  'src/engine/group_products.ts': 'export const groupProducts = () => {}, partView = (view) => view;',
  'src/engine/stored.ts': 'export const readStored = (graph) => graph.nodes;',
  'src/engine/ops/weight_operand.ts': `
    import { vectorType } from '../pointwise_codegen';
    export const weightOperand = ({ dtype, even, transposed }) => ({ prologue: { W: vectorType(dtype, even ? 4 : 1), W4: vectorType(dtype, 4), W_WIDE: even }, includes: transposed && { 'lib/weights.wgsl': 'lib/weights_transposed.wgsl' } });`,
  'src/io/packed.ts': 'export const pack = () => {}, packedBytes = pack, unpack = pack;',
  'src/model/weight_error.ts': 'export const weightError = () => {}, storageReport = weightError;',
  'src/model/weight_format.ts': `
    import { BruitError } from '../engine/errors';
    export function weightFormat(_, wanted) {
      if (wanted !== 'auto' && wanted !== 'f32') throw new BruitError('input', \`weights as \${wanted} take the whole of bruit: bruit/sampling has them as f32\`);
      return 'f32';
    }`,
  'src/model/weight_parts.ts': 'export const placingOrder = (specs) => specs, partShapes = () => [], partOf = (stored) => stored, joinParts = ([part]) => part;',
};

/** Files whose declarations are what the bundle's users see, and WebGPU's. */
const publicFiles = ['engine/device', 'engine/errors', 'io/folder', 'io/source', 'pipelines/ddpm', 'pipelines/stage', 'sampler/program', 'sampler/sample', 'sampler/scheduler_config'].map((file) => fileURLToPath(new URL(`../src/${file}.ts`, import.meta.url)));
publicFiles.push(createRequire(import.meta.url).resolve('@webgpu/types/dist/index.d.ts'));

/** Bodies of functions that guess, for the end of an error, what a wrong file may be, that ask what only `tune` can tell, that look for subgroup matrices, which f32 has none of, or for few channels, few rows, taps in threes and short vectors, which are worth kernels to software adapters alone, that rescale guidance, as no pipeline here does, and that open what no U-Net of this size comes in. */
const bodies = {
  hintFor: "return ''",
  otherFormat: "return ''",
  withSuggestion: 'return name',
  sameButForOnes: "return ''",
  tunedVariant: 'return undefined',
  subgroupMatrixOf: 'return undefined',
  matrixTiles: 'return undefined',
  unfolds: 'return undefined',
  tapRowsFit: 'return undefined',
  fewRowsPay: 'return undefined',
  twoBlocksOf: 'return undefined',
  enableMatrices: 'return text',
  reflectable: 'return text',
  rescale: 'return guided',
  openSharded: 'return fail(`${index.name}: sharded weights take the whole of bruit`)',
};

/** The blocks of src/model/k_blocks.ts, which no unconditional checkpoint has: their names are unknown there. */
const noKBlocks = `
  export const kDownTypes = [], kUpTypes = [], isKType = () => false;
  export const kDownBlock = isKType, kUpBlock = isKType;`;

/**
 * esbuild plugin for bundles that only sample, minified with their shaders. Dropped are tests, gradients and documentation of ops; checks of
 * what cannot go wrong with shaders and ops that were tested, and the ops' own words about shapes (Graph.add names op, layer and operands);
 * {@link otherSchedulers}; K blocks; what {@link bodies} leaves out; methods that nothing here calls, but for those of exported classes; what only people read in shaders.
 * wgsl_reflect makes way for src/engine/wgsl_layout.ts.
 */
export function samplingOnly(root) {
  return {
    name: 'sampling-only',
    async setup(build) {
      const { default: ts } = await import('typescript');
      const { minify } = await import('terser');
      const { transform } = build.esbuild;
      // The whole bundle is minified at the end.
      Object.assign(build.initialOptions, { write: false, minify: false, minifySyntax: true, tsconfigRaw: { compilerOptions: { useDefineForClassFields: false } } });
      const directory = join(root, 'shaders');
      const texts = new Map();
      for (const name of await readdir(directory, { recursive: true })) if (name.endsWith('.wgsl')) texts.set(name.replaceAll(sep, '/'), await readFile(join(directory, name), 'utf8'));
      const paths = [...texts.keys()];
      const variable = (path) => `$${paths.indexOf(path)}`;

      build.onResolve({ filter: /^wgsl_reflect\// }, () => ({ path: join(root, 'src/engine/wgsl_layout.ts') }));
      // A global for now: the texts come to stand side by side, where the compressor sees what they have in common.
      build.onLoad({ filter: /\.wgsl$/ }, ({ path }) => ({ contents: `export default ${variable(relative(directory, path).replaceAll(sep, '/'))}`, loader: 'js' }));
      build.onLoad({ filter: /[\\/]k_blocks\.ts$/ }, () => ({ contents: noKBlocks, loader: 'js' }));
      // Snippets that only gradients include, and masks of texts.
      build.onLoad({ filter: /shader_library\.ts$/ }, async ({ path }) => ({ contents: (await readFile(path, 'utf8')).replace(new RegExp(`^.*(_grad|_dout|attention_mask|weights_half|weights_blocks|unpack_|add_outer|${[...otherKernels].join('|')}).*\n`, 'gm'), ''), loader: 'ts' }));
      for (const [path, contents] of Object.entries(substitutes)) build.onLoad({ filter: new RegExp(`[\\\\/]${path.replaceAll('/', '[\\\\/]').replace('.', '\\.')}$`) }, () => ({ contents, loader: 'ts' }));
      build.onLoad({ filter: /[\\/]src[\\/](engine|io|sampler)[\\/].*\.ts$/ }, async ({ path }) => ({ contents: strip(ts, path, await readFile(path, 'utf8')), loader: 'ts' }));
      build.onEnd(async ({ outputFiles = [] }) => {
        for (const file of outputFiles) {
          let code = file.text;
          for (let rest = code; rest; rest = withoutUnused(ts, code)) code = (await transform(rest, { loader: 'js', format: 'esm', target: 'es2022', treeShaking: true, minifySyntax: true })).code;
          const used = paths.filter((path) => new RegExp(`\\${variable(path)}\\b`).test(code));
          const shaders = minifyShaders(new Map(used.map((path) => [path, texts.get(path)])), gradientConstants, wordsInStrings(ts, engineOnly(file.text)));
          const known = [...texts.values()].flatMap((text) => text.replace(/\/\/.*/g, '').match(/\w+/g));
          for (const path of publicFiles) known.push(...publicMembers(ts, path, await readFile(path, 'utf8')));
          const minified = await minify(code, { module: true, mangle: { properties: { regex: oneOf(ownProperties(ts, code, known)) } }, ecma: 2022, compress: { passes: 3, keep_fargs: false, pure_getters: true, unsafe_arrows: true, reduce_funcs: false }, format: { comments: false } });
          // Neighbours by file name are alike: matmul.wgsl, lib/matmul_operands.wgsl, matmul_tiled.wgsl …
          const name = (path) => path.slice(path.lastIndexOf('/') + 1);
          const constants = [...shaders].sort(([a], [b]) => (name(a) < name(b) ? -1 : 1)).map(([path, text]) => `${variable(path)}=\`${text}\``);
          file.contents = Buffer.from(`const ${constants.join(',')};${minified.code}`);
        }
      });
    },
  };
}

/** A pattern of whole words. */
const oneOf = (words) => new RegExp(`^(${words.join('|')})$`);

/**
 * Names of members of classes that mean nothing outside of the bundle: they stand in none of its strings (keys of JSON files, names of ops) nor among
 * the `known` (fields of shaders' structs, WebGPU, the public interface).
 */
function ownProperties(ts, code, known) {
  const reserved = new Set(known);
  const declared = new Set();
  const visit = (node) => {
    if (ts.isStringLiteralLike(node) || ts.isTemplateHead(node) || ts.isTemplateMiddleOrTemplateTail(node)) for (const word of node.text.match(/\w+/g) ?? []) reserved.add(word);
    if (node.name && ts.isIdentifier(node.name) && ts.isClassElement(node)) declared.add(node.name.text);
    ts.forEachChild(node, visit);
  };
  visit(ts.createSourceFile('bundle.js', code, ts.ScriptTarget.ESNext, true));
  return [...declared].filter((name) => name.length > 2 && !reserved.has(name));
}

/** Names of members of a file's interfaces, types and classes, but for private ones. */
function publicMembers(ts, path, source) {
  const names = [];
  const visit = (node) => {
    const isPrivate = ts.canHaveModifiers(node) && ts.getModifiers(node)?.some((m) => m.kind === ts.SyntaxKind.PrivateKeyword);
    if ((ts.isTypeElement(node) || ts.isClassElement(node) || ts.isParameterPropertyDeclaration(node, node.parent)) && !isPrivate && node.name) names.push(node.name.getText());
    ts.forEachChild(node, visit);
  };
  visit(ts.createSourceFile(path, source, ts.ScriptTarget.ESNext, true));
  return names;
}

/** Source of the engine without what a bundle that only samples does not need. */
function strip(ts, path, source) {
  const file = ts.createSourceFile(path, source, ts.ScriptTarget.ESNext, true);
  const isOp = /[\\/]ops[\\/]/.test(path);
  const others = isOp ? new Set([...otherKernels, ...Object.keys(gradientConstants)]) : new Set();
  const cuts = [];
  const cutFromList = (node, list) => {
    const next = list[list.indexOf(node) + 1];
    cuts.push([node.getFullStart(), next ? next.getFullStart() : list.end, '']);
  };
  const named = (node, names) => names.has(node.name?.getText() ?? '');
  // ...(condition && { name: … })
  const spreads = (node, names) => ts.isSpreadAssignment(node) && names.has(/^\(.* && \{ (\w+)(: .*)? \}\)$/s.exec(node.expression.getText())?.[1]);
  const throws = (statement, code) => statement && ts.isThrowStatement(statement) && ts.isNewExpression(statement.expression) && statement.expression.arguments?.[0]?.getText() === `'${code}'`;
  const visit = (node, exported) => {
    if (ts.isFunctionDeclaration(node) && Object.hasOwn(bodies, node.name?.text)) return void cuts.push([node.body.getStart(), node.body.end, `{ ${bodies[node.name.text]}; }`]);
    if (ts.isObjectLiteralExpression(node)) {
      const definition = isOp && ((ts.isCallExpression(node.parent) && node.parent.expression.getText() === 'defineOp') || node.properties.some((p) => p.name?.getText() === 'wgsl'));
      const names = definition ? unused : isOp ? others : otherSchedulers;
      for (const property of node.properties) {
        if (named(property, names) || named(property, others) || named(property, debugging) || spreads(property, names)) cutFromList(property, node.properties);
        else visit(property, exported);
      }
      return;
    }
    // A compiler cannot know that arguments of a call that gives nothing have no effects.
    if (ts.isCallExpression(node) && bodies[node.expression.getText()] === 'return undefined') return void cuts.push([node.getStart(), node.end, 'undefined']);
    // Advice that speaks of training and decoding.
    if (ts.isCallExpression(node) && node.expression.getText() === 'adviceFor') return void cuts.push([node.getStart(), node.end, "''"]);
    if (ts.isObjectBindingPattern(node)) for (const element of node.elements) if (named(element, debugging)) cutFromList(element, node.elements);
    const condition = ts.isIfStatement(node) ? node.expression : ts.isExpressionStatement(node) && ts.isCallExpression(node.expression) && node.expression.expression.questionDotToken ? node.expression.expression.expression : undefined;
    if (condition && debugging.has(condition.getText())) return void cuts.push([node.getStart(), node.end, ';']);
    // if (…) throw new BruitError('shader', …), perhaps for each of something.
    const only = (statement) => (statement && ts.isBlock(statement) && statement.statements.length === 1 ? statement.statements[0] : statement);
    const check = ts.isForOfStatement(node) ? only(node.statement) : node;
    if (ts.isIfStatement(check) && !check.elseStatement && throws(only(check.thenStatement), 'shader')) return void cuts.push([node.getStart(), node.end, ';']);
    if (isOp && ts.isArrayLiteralExpression(node)) for (const name of node.elements) if (otherKernels.has(name.text)) cutFromList(name, node.elements);
    if (isOp && ts.isBinaryExpression(node) && otherKernels.has(node.right.text)) return void cuts.push([node.getStart(), node.end, String(node.operatorToken.kind === ts.SyntaxKind.ExclamationEqualsEqualsToken)]);
    if (isOp && !exported) {
      const { arguments: list, expression } = node;
      if (ts.isNewExpression(node) && list?.[0]?.getText() === "'shape'") return void cuts.push([list[1].getStart(), list[1].end, "''"]);
      if (ts.isCallExpression(node) && expression.getText() === 'check' && list[1]?.getText() === "'shape'") cuts.push([list[2].getStart(), list[2].end, "() => ''"]);
    }
    if (isOp && ts.isIdentifier(node) && gradientParameters.has(node.text) && isValue(ts, node)) cuts.push([node.getStart(), node.end, 'false']);
    ts.forEachChild(node, (child) => visit(child, exported));
  };
  const isExported = (statement) => ts.canHaveModifiers(statement) && ts.getModifiers(statement)?.some((m) => m.kind === ts.SyntaxKind.ExportKeyword);
  for (const statement of file.statements) visit(statement, isExported(statement));
  for (const { parameters, calls } of isOp ? rowMakers(ts, file) : []) for (const list of [parameters, ...calls]) parameters.forEach((p, i) => named(p, unused) && list[i] && cutFromList(list[i], list));
  // Tables at the top of a file have no effects, but a bundler cannot know that of one with calls or spreads in it: as the result of a call marked
  // pure it goes where nothing refers to it.
  for (const statement of isOp ? file.statements : []) {
    for (const { initializer } of ts.isVariableStatement(statement) ? statement.declarationList.declarations : []) {
      if (!initializer || ts.isArrowFunction(initializer)) continue;
      cuts.push([initializer.getStart(), initializer.getStart(), '/* @__PURE__ */ (() => ('], [initializer.end, initializer.end, '))()']);
    }
  }
  const outermost = cuts.filter(([from, to]) => !cuts.some(([a, b]) => a <= from && to <= b && b - a > to - from));
  return outermost.sort(([a], [b]) => b - a).reduce((text, [from, to, by]) => text.slice(0, from) + by + text.slice(to), source);
}

/** Functions of a file that make rows or ops from arguments, with their calls: a dropped property is a dropped parameter. */
function rowMakers(ts, file) {
  const makers = new Map();
  for (const statement of file.statements) {
    const [declaration] = ts.isVariableStatement(statement) ? statement.declarationList.declarations : [statement];
    const made = ts.isFunctionDeclaration(declaration) ? declaration : declaration.initializer;
    if (made?.parameters?.some((p) => unused.has(p.name.getText()))) makers.set(declaration.name.text, { parameters: made.parameters, calls: [] });
  }
  const visit = (node) => {
    if (ts.isCallExpression(node)) makers.get(node.expression.getText())?.calls.push(node.arguments);
    ts.forEachChild(node, visit);
  };
  visit(file);
  return makers.values();
}

/** Whether an identifier stands for its value, rather than naming a parameter or property. */
function isValue(ts, node) {
  const { parent } = node;
  if (ts.isParameter(parent) || ts.isPropertySignature(parent) || ts.isBindingElement(parent) || ts.isShorthandPropertyAssignment(parent)) return false;
  return !((ts.isPropertyAccessExpression(parent) || ts.isPropertyAssignment(parent)) && parent.name === node);
}

/** Modules of src/engine in a bundle with esbuild's comments. */
const engineOnly = (code) => code.split(/^(?=\/\/ \S+\.\w+$)/m).filter((part) => part.startsWith('// src/engine/')).join('');

/** Words of the program's strings: functions of shaders that it calls and entry points. */
function wordsInStrings(ts, code) {
  const words = new Set();
  const visit = (node) => {
    if (ts.isStringLiteralLike(node) || ts.isTemplateHead(node) || ts.isTemplateMiddleOrTemplateTail(node)) for (const word of node.text.replace(/\S+\.wgsl$/, '').match(/\w+/g) ?? []) words.add(word);
    ts.forEachChild(node, visit);
  };
  visit(ts.createSourceFile('bundle.js', code, ts.ScriptTarget.ESNext, true));
  return words;
}

/**
 * The bundle without members of classes and rows of the pointwise table that it never names, or undefined where there are none.
 * Exported classes stay whole.
 */
function withoutUnused(ts, code) {
  const file = ts.createSourceFile('bundle.js', code, ts.ScriptTarget.ESNext, true);
  const used = new Set(['toString']);
  const exported = new Set();
  const candidates = [];
  const visit = (node, inTable) => {
    if (ts.isPropertyAccessExpression(node)) used.add(node.name.text);
    else if (ts.isBindingElement(node)) used.add((node.propertyName ?? node.name).getText());
    else if (ts.isStringLiteralLike(node) && !inTable) used.add(node.text);
    else if (ts.isExportSpecifier(node)) exported.add((node.propertyName ?? node.name).text);
    const owner = ts.isVariableDeclaration(node.parent ?? node) ? node.parent.name.text : node.name?.text;
    const table = ts.isObjectLiteralExpression(node) && /^rows\d*$/.test(owner ?? '');
    if (ts.isClassLike(node)) candidates.push(...node.members.filter((m) => m.name && ts.isIdentifier(m.name)).map((member) => ({ owner, member })));
    if (table) candidates.push(...node.properties.map((member, i) => ({ owner, member, end: node.properties[i + 1]?.getFullStart() ?? node.properties.end })));
    ts.forEachChild(node, (child) => visit(child, inTable || table));
  };
  visit(file, false);
  const dropped = candidates.filter(({ owner, member }) => !exported.has(owner) && !used.has(member.name.text));
  return dropped.length ? dropped.reverse().reduce((text, { member, end }) => text.slice(0, member.getFullStart()) + text.slice(end ?? member.end), code) : undefined;
}
