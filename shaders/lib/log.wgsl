// Natural logarithm to f32 rounding: WGSL's log is only accurate to 2⁻²¹ between 0.5 and 2.

// ln((1 + s)/(1 − s)) = 2·artanh(s) by its series, for |s| ≤ 1/3.
fn log_ratio(s: f32) -> f32 {
  let q = s * s;
  return 2.0 * s * (1.0 + q * (0.33333333333 + q * (0.2 + q * (0.14285714286 + q * (0.11111111111 + q * (0.090909090909
    + q * (0.076923076923 + q * (0.066666666667 + q * 0.058823529412))))))));
}

// ln(v) for normal v > 0.
fn log_exact(v: f32) -> f32 {
  let bits = bitcast<u32>(v);
  var exponent = f32(i32(bits >> 23u) - 127);
  var mantissa = bitcast<f32>((bits & 0x007fffffu) | 0x3f800000u);
  if (mantissa > 1.41421356) {
    mantissa *= 0.5;
    exponent += 1.0;
  }
  return 0.69314718056 * exponent + log_ratio((mantissa - 1.0) / (mantissa + 1.0));
}
