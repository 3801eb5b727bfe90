// Philox4x32-10 (Salmon et al., SC'11), bit for bit the stream of src/engine/rng.ts.
// include lib/log.wgsl

// High 32 bits of a 64-bit product, in 16-bit limbs: WGSL has no 64-bit integers.
fn mul_high(a: u32, b: u32) -> u32 {
  let a_low = a & 0xffffu;
  let a_high = a >> 16u;
  let b_low = b & 0xffffu;
  let b_high = b >> 16u;
  let middle = a_high * b_low + ((a_low * b_low) >> 16u);
  let carry = a_low * b_high + (middle & 0xffffu);
  return a_high * b_high + (middle >> 16u) + (carry >> 16u);
}

fn philox4x32(counter: vec4<u32>, key: vec2<u32>) -> vec4<u32> {
  var c = counter;
  var k = key;
  for (var round = 0u; round < 10u; round++) {
    let high0 = mul_high(0xd2511f53u, c.x);
    let high1 = mul_high(0xcd9e8d57u, c.z);
    c = vec4<u32>(high1 ^ c.y ^ k.x, 0xcd9e8d57u * c.z, high0 ^ c.w ^ k.y, 0xd2511f53u * c.x);
    k += vec2<u32>(0x9e3779b9u, 0xbb67ae85u);
  }
  return c;
}

// (word + 0.5)·2⁻³², as uniform01 of the host.
fn uniform01(word: u32) -> f32 {
  return (f32(word) + 0.5) * 2.3283064365386963e-10;
}

// −ln((word + 0.5)·2⁻³²), exact where it is small: the Box-Muller radius is its root.
fn neg_log_uniform(word: u32) -> f32 {
  if (word >= 0x80000000u) {
    let t = (f32(~word) + 0.5) * 2.3283064365386963e-10; // 1 − the uniform number
    return log_ratio(t / (2.0 - t));
  }
  return -log_exact(uniform01(word));
}

// (cos, sin) of 2π·(word + 0.5)·2⁻³²: the quarter turn is taken off in integers, so nothing is lost, and Taylor polynomials do the rest on ±π/4.
fn unit_circle(word: u32) -> vec2<f32> {
  let quarter = (word + 0x20000000u) >> 30u;
  let a = (f32(bitcast<i32>(word - (quarter << 30u))) + 0.5) * 1.4629180792671596e-9; // π/2·2⁻³⁰
  let q = a * a;
  let s = a + a * q * (-0.16666666667 + q * (0.0083333333333 + q * (-0.00019841269841 + q * 0.0000027557319224)));
  let c = 1.0 + q * (-0.5 + q * (0.041666666667 + q * (-0.0013888888889 + q * (0.000024801587302 - q * 0.00000027557319224))));
  let even = select(vec2<f32>(c, s), vec2<f32>(-s, c), (quarter & 1u) == 1u);
  return select(even, -even, (quarter & 2u) == 2u);
}

// Two standard normal numbers (Box and Muller 1958), within about 1e-6 of the host's on any device.
fn box_muller(word1: u32, word2: u32) -> vec2<f32> {
  return sqrt(2.0 * neg_log_uniform(word1)) * unit_circle(word2);
}
