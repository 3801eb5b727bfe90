// Products for subgroups of 8 lanes (llvmpipe): a lane computes four columns of a tile's rows, and holds a share of the left operand that it passes on by shuffles.
// Rows come in eights, for one block of 8 rows and 4 terms of the sums is a vec4 for each lane. `BY_TERMS` says how it is shared out: lane i holds row i of the block,
// or, where the operand is stored with rows next to each other, rows 0 to 3 (lanes 0 to 3) or 4 to 7 (lanes 4 to 7) of term i % 4.

// Sums of eight rows and the lane's four columns.
alias Sums = array<vec4<f32>, 8>;

// Of 8, 16 or 32 rows, as ROWS says; 64 rows are two of these.
struct Tile {
  c0: Sums,
  c1: Sums,
  c2: Sums,
  c3: Sums,
}

fn element(share: vec4<f32>, r: u32, j: u32) -> f32 {
  if (BY_TERMS) {
    return subgroupShuffle(share[r % 4u], j + r / 4u * 4u);
  }
  return subgroupShuffle(share[j], r);
}

// One row; column j of b is term j of the sums. As a product of matrices and a sum it takes 1.6 times as long on Mesa 26, which fuses only what is written as fma.
fn add_row(sums: vec4<f32>, share: vec4<f32>, r: u32, b: mat4x4<f32>) -> vec4<f32> {
  let first = fma(vec4<f32>(element(share, r, 0u)), b[0], sums);
  let second = fma(vec4<f32>(element(share, r, 1u)), b[1], first);
  let third = fma(vec4<f32>(element(share, r, 2u)), b[2], second);
  return fma(vec4<f32>(element(share, r, 3u)), b[3], third);
}

fn add_rows(sums: Sums, share: vec4<f32>, b: mat4x4<f32>) -> Sums {
  return Sums(
    add_row(sums[0], share, 0u, b),
    add_row(sums[1], share, 1u, b),
    add_row(sums[2], share, 2u, b),
    add_row(sums[3], share, 3u, b),
    add_row(sums[4], share, 4u, b),
    add_row(sums[5], share, 5u, b),
    add_row(sums[6], share, 6u, b),
    add_row(sums[7], share, 7u, b),
  );
}

// Column i of `shares` is of the tile's i-th eight rows.
fn add_product(t: Tile, shares: mat4x4<f32>, b: mat4x4<f32>) -> Tile {
  var sums = t;
  sums.c0 = add_rows(t.c0, shares[0], b);
  if (ROWS > 8u) {
    sums.c1 = add_rows(t.c1, shares[1], b);
  }
  if (ROWS > 16u) {
    sums.c2 = add_rows(t.c2, shares[2], b);
    sums.c3 = add_rows(t.c3, shares[3], b);
  }
  return sums;
}
