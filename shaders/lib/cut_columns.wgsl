// Column j of a block becomes 0 where at + j does not lie before `end`: what is read there may be anything, NaN too.
fn cut_columns(x: mat4x4<f32>, at: u32, end: u32) -> mat4x4<f32> {
  let zero = vec4<f32>();
  return mat4x4<f32>(
    select(zero, x[0], at < end),
    select(zero, x[1], at + 1u < end),
    select(zero, x[2], at + 2u < end),
    select(zero, x[3], at + 3u < end),
  );
}
