// Levels of 8 bits, -127 to 127, four to a word.
const BAND_WORDS = 9u; // of a band of 32 rows, for each column

// Levels i..i+4 of those that begin at word `base`; i is divisible by 4.
fn levels(base: u32, i: u32) -> vec4<f32> {
  let word = w[base + i / 4u];
  return vec4<f32>(bitcast<vec4<i32>>(vec4<u32>(word) << vec4<u32>(24u, 16u, 8u, 0u)) >> vec4<u32>(24u));
}
