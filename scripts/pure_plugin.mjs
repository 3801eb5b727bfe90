import { readFile } from 'node:fs/promises';

/**
 * esbuild plugin for libraries in one file: marks what the top level of modules in `directory` computes as free of side effects (package.json says so of
 * whole files, which a bundle of them no longer is), so that an application's bundler drops the ops and tables that it does not use.
 */
export function pure(directory) {
  return {
    name: 'pure',
    async setup(build) {
      const { default: ts } = await import('typescript');
      build.onLoad({ filter: /\.ts$/ }, async ({ path }) => {
        if (!path.startsWith(directory)) return null;
        const source = await readFile(path, 'utf8');
        const file = ts.createSourceFile(path, source, ts.ScriptTarget.ESNext, true);
        const cuts = [];
        for (const statement of file.statements) {
          for (const { name, initializer } of ts.isVariableStatement(statement) ? statement.declarationList.declarations : []) {
            if (!ts.isIdentifier(name) || !initializer || ts.isFunctionLike(initializer) || ts.isLiteralExpression(initializer) || ts.isAwaitExpression(initializer)) continue;
            cuts.push([initializer.getStart(), '/* @__PURE__ */ (() => ('], [initializer.end, '))()']);
          }
        }
        return { contents: cuts.reverse().reduce((text, [at, by]) => text.slice(0, at) + by + text.slice(at), source), loader: 'ts' };
      });
    },
  };
}
