import { afterAll, describe, expect, test } from 'vitest';
import { Engine } from '../../src/engine/device';
import { allOps } from './all_ops';
import { testDevice } from './device';
import { opChecks } from './op_suite';

/** Ops whose kernels take longest to compile, by a prefix of their names: each family is a file of its own, so that two run at once. */
export const families = ['attention', 'conv2d', 'matmul', 'group_norm'] as const;

/** All checks of a family's ops, or of all ops outside the families. */
export async function describeOps(family: (typeof families)[number] | 'others'): Promise<void> {
  const familyOf = (name: string) => families.find((prefix) => name.startsWith(prefix)) ?? 'others';
  // The profile decides which checks exist, so the device is wanted while tests are collected.
  const engine = await Engine.create({ device: await testDevice() });
  afterAll(() => engine.destroy());
  describe.each(allOps.filter(({ op }) => familyOf(op.name) === family).map((suite) => [suite.op.name, suite] as const))('%s', (_, suite) => {
    test('documents itself', () => {
      expect(suite.op.doc.length).toBeGreaterThan(0);
      expect(suite.cases.length).toBeGreaterThan(0);
    });
    for (const check of opChecks(suite, engine.profile)) test.skipIf(check.skip)(check.skip ? `${check.name} (${check.skip})` : check.name, () => check.run(engine));
  });
}
