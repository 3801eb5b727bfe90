// Register tile of a matrix product for subgroups of 4 lanes: the subgroup computes 8x16 of C, a lane four columns of it
// (in attention l, l+4, l+8 and l+12; elsewhere those of `lane_column`).
// Neighbouring lanes load neighbouring elements, which is one instruction where a vec4 for each lane would be sixteen; of a row of A each
// lane loads one of four elements, and the others get it by broadcast. Names, not arrays: they may stay in registers.
var<private> c0: vec4<f32>;
var<private> c1: vec4<f32>;
var<private> c2: vec4<f32>;
var<private> c3: vec4<f32>;
var<private> c4: vec4<f32>;
var<private> c5: vec4<f32>;
var<private> c6: vec4<f32>;
var<private> c7: vec4<f32>;

// What the four lanes hold.
fn row_of(v: f32) -> vec4<f32> {
  return vec4<f32>(subgroupBroadcast(v, 0u), subgroupBroadcast(v, 1u), subgroupBroadcast(v, 2u), subgroupBroadcast(v, 3u));
}

// Adds A·B: lane l holds A[0..4][l] and A[4..8][l], and as column k of b the elements of B[k] in its columns.
fn multiply(upper: vec4<f32>, lower: vec4<f32>, b: mat4x4<f32>) {
  c0 += b * row_of(upper.x);
  c1 += b * row_of(upper.y);
  c2 += b * row_of(upper.z);
  c3 += b * row_of(upper.w);
  c4 += b * row_of(lower.x);
  c5 += b * row_of(lower.y);
  c6 += b * row_of(lower.z);
  c7 += b * row_of(lower.w);
}

// The same where lane l holds row l of a transposed A: A[0..4] = upper of the four lanes, A[4..8] = lower.
fn multiply_rows(upper: vec4<f32>, lower: vec4<f32>, b: mat4x4<f32>) {
  c0 += b * subgroupBroadcast(upper, 0u);
  c1 += b * subgroupBroadcast(upper, 1u);
  c2 += b * subgroupBroadcast(upper, 2u);
  c3 += b * subgroupBroadcast(upper, 3u);
  c4 += b * subgroupBroadcast(lower, 0u);
  c5 += b * subgroupBroadcast(lower, 1u);
  c6 += b * subgroupBroadcast(lower, 2u);
  c7 += b * subgroupBroadcast(lower, 3u);
}

// The tile by rows, for loops where speed does not count: such adapters take seconds to compile long kernels.
fn tile() -> array<vec4<f32>, 8> {
  return array<vec4<f32>, 8>(c0, c1, c2, c3, c4, c5, c6, c7);
}

fn set_tile(x: array<vec4<f32>, 8>) {
  c0 = x[0];
  c1 = x[1];
  c2 = x[2];
  c3 = x[3];
  c4 = x[4];
  c5 = x[5];
  c6 = x[6];
  c7 = x[7];
}
