// The second operand of a product as plain elements, stored transposed: see lib/weights.wgsl. Stored row n of the matrix holds its column n, and
// is reduction() long.
// include lib/elements.wgsl

// W[k][n..n+4]; W is a scalar.
fn weights(first: u32, k: u32, n: u32) -> vec4<f32> {
  let i = (first + n) * reduction() + k;
  return vec4<f32>(weight(i), weight(i + reduction()), weight(i + 2u * reduction()), weight(i + 3u * reduction()));
}

fn weight_block(first: u32, k: u32, n: u32) -> mat4x4<f32> {
  let i = (first + n) * reduction() + k;
  return transpose(mat4x4<f32>(table(i), table(i + reduction()), table(i + 2u * reduction()), table(i + 3u * reduction())));
}
