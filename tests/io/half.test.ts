import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { bf16ToF32, f16ToF32, f32ToBf16, f32ToF16 } from '../../src/io/half';

/** The value of a float with 1 sign bit, `e` exponent bits and `m` mantissa bits, from IEEE 754's definition. */
function define(bits: number, e: number, m: number): number {
  const sign = bits >>> (e + m) ? -1 : 1;
  const exponent = (bits >>> m) & (2 ** e - 1);
  const mantissa = bits & (2 ** m - 1);
  const bias = 2 ** (e - 1) - 1;
  if (exponent === 2 ** e - 1) return mantissa ? NaN : sign * Infinity;
  return exponent === 0 ? sign * mantissa * 2 ** (1 - bias - m) : sign * (1 + mantissa / 2 ** m) * 2 ** (exponent - bias);
}

const all = Uint16Array.from({ length: 65536 }, (_, i) => i);

describe.each([
  { type: 'f16', widen: f16ToF32, narrow: f32ToF16, e: 5, m: 10 },
  { type: 'bf16', widen: bf16ToF32, narrow: f32ToBf16, e: 8, m: 7 },
])('$type', ({ widen, narrow, e, m }) => {
  const values = widen(all);
  const infinity = (2 ** e - 1) << m;

  test('all 65536 values widen to their definition and narrow back to their bits', () => {
    const back = narrow(values);
    for (let bits = 0; bits < 65536; bits++) {
      const wanted = define(bits, e, m);
      if (!Object.is(values[bits], wanted)) expect.fail(`0x${bits.toString(16)} is ${values[bits]}, not ${wanted}`);
      if (Number.isNaN(wanted)) {
        if (!Number.isNaN(define(back[bits]!, e, m))) expect.fail(`NaN 0x${bits.toString(16)} became 0x${back[bits]!.toString(16)}`);
      } else if (back[bits] !== bits) expect.fail(`0x${bits.toString(16)} came back as 0x${back[bits]!.toString(16)}`);
    }
  });

  test('between every two neighbours: below the middle goes down, above goes up, the middle goes to the even one', () => {
    const bits = new Uint32Array(1);
    const float = new Float32Array(bits.buffer);
    const neighbour = (x: number, step: number): number => {
      float[0] = x;
      bits[0]! += step;
      return float[0]!;
    };
    for (let low = 0; low < infinity; low++) {
      // The upper neighbour of the largest value is where the next one would be if the exponent went on.
      const high = low + 1 === infinity ? 2 ** 2 ** (e - 1) : values[low + 1]!;
      const middle = (values[low]! + high) / 2;
      if (!Object.is(Math.fround(middle), middle)) expect.fail(`the middle above 0x${low.toString(16)} is not a float32`);
      const [down, tie, up] = narrow(Float32Array.of(neighbour(middle, -1), middle, neighbour(middle, 1)));
      if (down !== low || up !== low + 1 || tie !== low + (low & 1)) expect.fail(`around ${middle}: 0x${[down, tie, up].map((h) => h!.toString(16)).join(', 0x')}`);
      const [negative] = narrow(Float32Array.of(-middle));
      if (negative !== (tie! | 0x8000)) expect.fail(`-(${middle}) became 0x${negative!.toString(16)}`);
    }
  });

  test('any float32 goes to a nearest value', () => {
    fc.assert(
      fc.property(fc.float({ noNaN: true, noDefaultInfinity: true }), (x) => {
        const h = narrow(Float32Array.of(x))[0]!;
        const magnitude = h & 0x7fff;
        const error = Math.abs(define(h, e, m) - x);
        if (magnitude === infinity) return Math.abs(x) >= (2 - 2 ** (-m - 1)) * 2 ** (2 ** (e - 1) - 1);
        const others = [magnitude - 1, magnitude + 1].filter((k) => k >= 0 && k < infinity).map((k) => Math.abs(define(k, e, m) - Math.abs(x)));
        return others.every((other) => error <= other);
      }),
      { numRuns: 2000 },
    );
  });

  test('infinity stays, NaN stays NaN even where its payload lies only in the dropped bits', () => {
    const quietest = new Float32Array(Uint32Array.of(0x7f800001, 0xffffffff).buffer);
    const [plus, minus, a, b] = narrow(Float32Array.of(Infinity, -Infinity, ...quietest));
    expect([plus, minus]).toEqual([infinity, infinity | 0x8000]);
    expect(define(a!, e, m)).toBeNaN();
    expect(define(b!, e, m)).toBeNaN();
    expect(narrow(quietest).every((h) => Number.isNaN(define(h, e, m)))).toBe(true);
  });

  test('views into a larger buffer', () => {
    const buffer = Float32Array.of(9, 1, -2, 9).subarray(1, 3);
    expect([...widen(narrow(buffer))]).toEqual([1, -2]);
    expect([...widen(Uint16Array.of(0, ...narrow(buffer)).subarray(1))]).toEqual([1, -2]);
  });
});
