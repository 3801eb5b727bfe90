/**
 * fp16 overflow in attention and autoencoders. Needs shader-f16: `BRUIT_ADAPTER=lavapipe npm run vitest -- tests/model/half_precision.test.ts`; SwiftShader, on
 * which the tests run by default, lacks it, and the second implementation of `npm test` (naga over lavapipe) runs the same checks.
 */
import { expect, test } from 'vitest';
import { Engine } from '../../src/engine/device';
import { autoencoderType } from '../../src/model/autoencoder_kl';
import { testDevice } from '../helpers/device';
import { halfPrecisionChecks } from '../helpers/half_precision';

const engine = await Engine.create({ device: await testDevice() });

test.skipIf(!engine.profile.f16).each(halfPrecisionChecks())('$name', ({ run }) => run(engine));

test('activations of an autoencoder are f16 where both caller and config say so', () => {
  expect(autoencoderType({ force_upcast: false }, 'f16')).toBe('f16');
  expect(autoencoderType({ force_upcast: true }, 'f16')).toBe('f32');
  expect(autoencoderType({ force_upcast: false })).toBe('f32');
});
