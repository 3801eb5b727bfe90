import js from '@eslint/js';
import { createNodeResolver, importX } from 'eslint-plugin-import-x';
import { defineConfig, globalIgnores } from 'eslint/config';
import tseslint from 'typescript-eslint';

/** Directories that must also run in a browser. */
const browserSafe = ['engine', 'model', 'sampler', 'text', 'train', 'io', 'data'];

/**
 * Who may not import whom: shaders <- engine <- {model, sampler} <- train <- {cli, bench}. `io` and `data` sit beside
 * engine and take only its types and errors; `node` is what only Node can do: it may use them all, and only programs use it.
 */
const zones = [
  { target: './src/engine', from: ['./src/model', './src/sampler', './src/train', './src/io', './src/data'] },
  { target: './src/io', from: ['./src/model', './src/sampler', './src/train', './src/data'] },
  { target: './src/data', from: ['./src/model', './src/sampler', './src/train'] },
  { target: './src/model', from: ['./src/sampler', './src/train', './src/data'] },
  { target: './src/sampler', from: ['./src/model', './src/train', './src/data'], message: 'A sampler takes a denoiser; it knows no model.' },
  ...browserSafe.map((name) => ({ target: `./src/${name}`, from: ['./src/node'], message: 'Only Node can load src/node.' })),
  { target: './src', from: ['./cli', './bench', './tests', './scripts', './web'] },
  { target: './cli', from: ['./tests'] },
  { target: ['./src', './cli', './tests', './scripts'], from: ['./bench'], message: 'Nothing imports bench.' },
].flatMap(({ from, ...zone }) => from.map((each) => ({ ...zone, from: each })));

export default defineConfig(
  globalIgnores(['**/dist/', 'out/', 'node_modules/', 'shared/']),
  js.configs.recommended,
  {
    files: ['**/*.ts', '**/*.tsx'],
    extends: [tseslint.configs.recommendedTypeChecked],
    languageOptions: { parserOptions: { projectService: true, tsconfigRootDir: import.meta.dirname } },
    plugins: { 'import-x': importX },
    settings: { 'import-x/resolver-next': [createNodeResolver({ extensions: ['.ts', '.tsx', '.js', '.mjs', '.wgsl'] })] },
    rules: {
      'import-x/no-restricted-paths': ['error', { basePath: import.meta.dirname, zones }],
      eqeqeq: 'error',
      'no-console': 'error',
      'prefer-const': 'error',
      '@typescript-eslint/consistent-type-imports': 'error',
      '@typescript-eslint/switch-exhaustiveness-check': ['error', { considerDefaultExhaustiveForUnions: true }],
      // noUncheckedIndexedAccess makes `array[i]!` inside bounded loops unavoidable.
      '@typescript-eslint/no-non-null-assertion': 'off',
      '@typescript-eslint/restrict-template-expressions': ['error', { allowNumber: true, allowBoolean: true, allowArray: true, allowNullish: true, allow: [{ name: ['Error', 'URL', 'URLSearchParams'], from: 'lib' }, { name: 'Tensor', from: 'file' }] }],
      '@typescript-eslint/require-await': 'off',
      '@typescript-eslint/no-unused-vars': ['error', { argsIgnorePattern: '^_', varsIgnorePattern: '^_', ignoreRestSiblings: true }],
      // Wrong about typed arrays over ArrayBuffer and ArrayBufferLike: what it calls unnecessary, tsc asks for.
      '@typescript-eslint/no-unnecessary-type-assertion': 'off',
      // WebGPU's enums and limits are looked up by computed names.
      '@typescript-eslint/no-unsafe-enum-comparison': 'off',
    },
  },
  {
    files: browserSafe.map((name) => `src/${name}/**/*.ts`).concat('src/index.ts'),
    rules: {
      'no-restricted-imports': ['error', { patterns: [{ group: ['node:*'], message: 'This must run in a browser: keep Node in src/node or cli.' }] }],
      'no-restricted-globals': ['error', 'process', 'Buffer', '__dirname', 'require', 'setImmediate'],
    },
  },
  {
    files: ['cli/**/*.ts', 'bench/**/*.ts', 'tests/**/*.ts', 'scripts/**/*.ts'],
    rules: { 'no-console': 'off' },
  },
  {
    files: ['tests/**/*.ts'],
    rules: {
      // expect(...) on `any` from JSON is what tests do.
      '@typescript-eslint/no-unsafe-assignment': 'off',
      '@typescript-eslint/no-unsafe-member-access': 'off',
      '@typescript-eslint/no-unsafe-argument': 'off',
      '@typescript-eslint/unbound-method': 'off',
      '@typescript-eslint/no-base-to-string': 'off',
      // Terminal output is tested by its escape codes.
      'no-control-regex': 'off',
    },
  },
  {
    files: ['**/*.mjs'],
    languageOptions: {
      globals: Object.fromEntries(['process', 'console', 'URL', 'window', 'performance', 'setTimeout', 'clearTimeout', 'Buffer'].map((name) => [name, 'readonly'])),
    },
  },
  {
    // Functions that run in the page.
    files: ['tests/browser/*.mjs'],
    languageOptions: { globals: Object.fromEntries(['document', 'navigator', 'location', 'scrollTo', 'Blob', 'DataTransfer', 'DragEvent', 'Event', 'File', 'HTMLInputElement', 'HTMLSelectElement', 'HTMLTextAreaElement', 'OffscreenCanvas'].map((name) => [name, 'readonly'])) },
  },
  {
    files: ['bench/**/*.mjs'],
    languageOptions: { globals: Object.fromEntries(['navigator', 'fetch', 'crypto', 'GPUAdapter', 'GPUBuffer', 'GPUBufferUsage', 'GPUComputePassEncoder', 'GPUDevice', 'TextEncoder', 'VERSION'].map((name) => [name, 'readonly'])) },
  },
  {
    files: ['examples/**/*.js'],
    languageOptions: { globals: Object.fromEntries(['process', 'console', 'URL', 'document', 'navigator', 'requestAnimationFrame', 'Worker', 'addEventListener', 'postMessage', 'GPUTextureUsage', 'GPUBufferUsage', 'GPUMapMode'].map((name) => [name, 'readonly'])) },
    rules: { 'no-console': 'off' },
  },
);
