import { describe, test } from 'vitest';
import { Engine } from '../src/engine/device';
import { tests } from '../src/engine/ops/attention';
import { testDevice } from './helpers/device';
import { opChecks } from './helpers/op_suite';
const engine = await Engine.create({ device: await testDevice() });
describe.each(tests.map((s) => [s.op.name, s] as const))('%s', (_, suite) => {
  for (const check of opChecks(suite, engine.profile)) test(check.name, () => check.run(engine), 120000);
});
