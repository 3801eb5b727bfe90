// Two binary16 numbers of a word, exactly.
fn unpack_pair(word: u32) -> vec2<f32> {
  return unpack2x16float(word);
}
