// The second operand of a product as plain elements (f32 or f16), rows one after the other. The same functions for other ways to store it are in
// lib/weights_transposed.wgsl, lib/weights_half.wgsl and lib/weights_blocks.wgsl. W[k][n] is in column n and row k of the matrix whose first
// row is stored as row `first`; rows are params.n long. What lies outside the operand is read from anywhere.
// include lib/elements.wgsl

// W[k][n..n+4].
fn weights(first: u32, k: u32, n: u32) -> vec4<f32> {
  return table((first + k) * params.n + n);
}

// Column j is W[k + j][n..n+4]; k is divisible by 4.
fn weight_block(first: u32, k: u32, n: u32) -> mat4x4<f32> {
  let i = (first + k) * params.n + n;
  return mat4x4<f32>(table(i), table(i + params.n), table(i + 2u * params.n), table(i + 3u * params.n));
}

// The j-th of the four columns of a tile of 16 that lane `lane` of a subgroup of 4 takes: neighbouring lanes load neighbouring elements.
fn lane_column(lane: u32, j: u32) -> u32 {
  return lane + 4u * j;
}

// Column j is W[k + j] in the lane's columns of the tile that begins at n; W is a scalar.
fn weight_lanes(first: u32, k: u32, n: u32, lane: u32) -> mat4x4<f32> {
  let at = (first + k) * params.n + n + lane;
  let at_1 = at + params.n;
  let at_2 = at_1 + params.n;
  let at_3 = at_2 + params.n;
  return mat4x4<f32>(
    weight(at), weight(at + 4u), weight(at + 8u), weight(at + 12u),
    weight(at_1), weight(at_1 + 4u), weight(at_1 + 8u), weight(at_1 + 12u),
    weight(at_2), weight(at_2 + 4u), weight(at_2 + 8u), weight(at_2 + 12u),
    weight(at_3), weight(at_3 + 4u), weight(at_3 + 8u), weight(at_3 + 12u),
  );
}
