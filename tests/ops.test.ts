import { afterAll, describe, expect, test } from 'vitest';
import { Engine } from '../src/engine/device';
import { allOps } from './helpers/all_ops';
import { testDevice } from './helpers/device';
import { opChecks } from './helpers/op_suite';

// The profile decides which checks exist, so the device is wanted while tests are collected.
const engine = await Engine.create({ device: await testDevice() });

describe.each(allOps.map((s) => [s.op.name, s] as const))('%s', (_, suite) => {
  for (const check of opChecks(suite, engine.profile)) test(check.name, () => check.run(engine));
});

test('every op documents itself', () => {
  for (const { op, cases } of allOps) {
    expect(op.doc.length, op.name).toBeGreaterThan(0);
    expect(cases.length, op.name).toBeGreaterThan(0);
  }
});

afterAll(() => engine.destroy());
