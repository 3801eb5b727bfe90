// Levels of 4 bits, -8 to 7, eight to a word.
const BAND_WORDS = 5u; // of a band of 32 rows, for each column

// Levels i..i+4 of those that begin at word `base`; i is divisible by 4.
fn levels(base: u32, i: u32) -> vec4<f32> {
  let word = w[base + i / 8u] >> (i % 8u * 4u);
  return vec4<f32>(bitcast<vec4<i32>>(vec4<u32>(word) << vec4<u32>(28u, 24u, 20u, 16u)) >> vec4<u32>(28u));
}
