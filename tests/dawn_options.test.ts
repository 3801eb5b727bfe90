import { expect, test, vi } from 'vitest';
import { dawnVariable } from '../src/node/gpu';

/** What Dawn offers under toggles of the variable and of the caller: experiments, if one of them is `allow_unsafe_apis`. */
async function experiments(ofVariable: string, ofCaller: string): Promise<number> {
  vi.resetModules();
  vi.stubEnv(dawnVariable, ofVariable);
  const { createNodeGPU, requestNodeAdapter } = await import('../src/node/gpu');
  const { features } = await requestNodeAdapter(createNodeGPU([`enable-dawn-features=${ofCaller}`]));
  return [...features].filter((name) => name.startsWith('chromium-experimental')).length;
}

test('toggles of the variable join those that the caller enables', async () => {
  const harmless = 'use_user_defined_labels_in_backend';
  expect(await experiments('', harmless)).toBe(0);
  expect(await experiments('allow_unsafe_apis', harmless)).toBeGreaterThan(0);
  expect(await experiments(harmless, 'allow_unsafe_apis')).toBeGreaterThan(0);
});
