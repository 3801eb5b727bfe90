/**
 * Conversions between float32 and the two 16-bit float types, on whole typed arrays.
 * A 16-bit float is held as its bits in a `Uint16Array`: binary16 (IEEE 754, 1+5+10 bits) or bfloat16 (the upper half of a float32).
 * Widening is exact. Narrowing rounds to nearest, ties to even, overflows to infinity, keeps subnormals, and keeps NaN a (quiet) NaN.
 */

let widened: Uint32Array | undefined;

/** float32 bits of every binary16 value: 256 KiB, built at first use, since one lookup is faster than telling the cases apart. */
function f16Table(): Uint32Array {
  if (widened) return widened;
  const table = new Uint32Array(65536);
  for (let h = 0; h < 65536; h++) {
    const sign = (h & 0x8000) << 16;
    let exponent = (h >>> 10) & 31;
    let mantissa = h & 1023;
    if (exponent === 31) exponent = 255;
    else if (exponent > 0) exponent += 127 - 15;
    else if (mantissa > 0) {
      // A subnormal m·2^-24 is a normal float32: move its leading one to the implicit bit.
      const shift = Math.clz32(mantissa) - 21;
      mantissa = (mantissa << shift) & 1023;
      exponent = 127 - 14 - shift;
    }
    table[h] = sign | (exponent << 23) | (mantissa << 13);
  }
  return (widened = table);
}

/** Widens binary16 bits to float32, exactly (NaN payloads included). */
export function f16ToF32(source: Uint16Array): Float32Array<ArrayBuffer> {
  const table = f16Table();
  const out = new Uint32Array(source.length);
  for (let i = 0; i < source.length; i++) out[i] = table[source[i]!]!;
  return new Float32Array(out.buffer);
}

/** Widens bfloat16 bits to float32, exactly. */
export function bf16ToF32(source: Uint16Array): Float32Array<ArrayBuffer> {
  const out = new Uint32Array(source.length);
  for (let i = 0; i < source.length; i++) out[i] = source[i]! << 16;
  return new Float32Array(out.buffer);
}

/** Rounds float32 to binary16 bits. Values of 65520 and above become infinity. */
export function f32ToF16(source: Float32Array): Uint16Array<ArrayBuffer> {
  const bits = new Uint32Array(source.buffer, source.byteOffset, source.length);
  const out = new Uint16Array(source.length);
  for (let i = 0; i < bits.length; i++) {
    const x = bits[i]!;
    const sign = (x >>> 16) & 0x8000;
    const a = x & 0x7fffffff;
    let h: number;
    if (a > 0x7f800000) h = 0x7e00 | ((a >>> 13) & 0x3ff);
    else if (a >= 0x477ff000) h = 0x7c00;
    else if (a >= 0x38800000) {
      // Normal result: rebias, then add just under half a unit, or half if the kept part is odd. A carry may enter the exponent, as it should.
      const rebiased = a - 0x38000000;
      h = (rebiased + 0xfff + ((rebiased >>> 13) & 1)) >>> 13;
    } else if (a > 0x33000000) {
      // Subnormal result: the value in units of 2^-24 is mantissa / 2^shift, with shift in 14..24.
      const shift = 126 - (a >>> 23);
      const mantissa = (a & 0x7fffff) | 0x800000;
      const kept = mantissa >>> shift;
      h = (mantissa + (1 << (shift - 1)) - 1 + (kept & 1)) >>> shift;
    } else h = 0; // 2^-25 and below: a tie goes to the even zero
    out[i] = sign | h;
  }
  return out;
}

/** Rounds float32 to bfloat16 bits. */
export function f32ToBf16(source: Float32Array): Uint16Array<ArrayBuffer> {
  const bits = new Uint32Array(source.buffer, source.byteOffset, source.length);
  const out = new Uint16Array(source.length);
  for (let i = 0; i < bits.length; i++) {
    const x = bits[i]!;
    const isNaN = (x & 0x7fffffff) > 0x7f800000;
    out[i] = isNaN ? (x >>> 16) | 0x40 : (x + 0x7fff + ((x >>> 16) & 1)) >>> 16;
  }
  return out;
}
