// Two bfloat16 numbers of a word, exactly: each is the upper half of an f32.
fn unpack_pair(word: u32) -> vec2<f32> {
  return bitcast<vec2<f32>>(vec2<u32>(word << 16u, word & 0xffff0000u));
}
