import { defineConfig } from 'vitest/config';
import { wgsl } from './scripts/wgsl_plugin.mjs';

export default defineConfig({
  plugins: [wgsl()],
  test: {
    include: ['tests/**/*.test.ts'],
    // Dawn is a native addon: it wants processes, and one device per process is all that a software adapter can feed.
    pool: 'forks',
    maxWorkers: 2,
    testTimeout: 120_000,
    hookTimeout: 120_000,
    reporters: ['default'],
  },
});
