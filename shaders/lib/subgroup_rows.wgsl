// Lane i of a subgroup of 8 holds row i of an 8x4 block: its first and its last four rows, as the columns of a matrix, for all lanes.
fn first_rows(v: vec4<f32>) -> mat4x4<f32> {
  return mat4x4<f32>(subgroupShuffle(v, 0u), subgroupShuffle(v, 1u), subgroupShuffle(v, 2u), subgroupShuffle(v, 3u));
}

fn last_rows(v: vec4<f32>) -> mat4x4<f32> {
  return mat4x4<f32>(subgroupShuffle(v, 4u), subgroupShuffle(v, 5u), subgroupShuffle(v, 6u), subgroupShuffle(v, 7u));
}
