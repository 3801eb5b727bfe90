// C = A·B for software adapters with subgroups of 8 lanes (llvmpipe). A load there is code for each lane and component, dear as 20
// multiply-adds, and a shuffle with a constant lane is one CPU instruction: so a subgroup computes up to 64x32 of C, four columns a lane,
// and the lanes load A's rows between them. Four terms of the sums take, with 32 rows, 32 gathers for 512 multiply-adds.
// include lib/index.wgsl
// prologue
alias A = vec4<f32>;
alias A4 = vec4<f32>;
alias Y = vec4<f32>;
alias V = vec4<f32>;
const A_WIDE = true; // a's innermost dimension is divisible by 4, and A is a vec4
const K_EDGE = false; // k is not divisible by the step of the loop over it
const TRANSPOSE_A = false; // a is stored [K,M]
const ROWS = 32u; // of a tile: 8, 16, 32 or 64
// end prologue
// include lib/pointwise.wgsl
// include lib/matmul_operands.wgsl
// include lib/weights.wgsl
// include lib/store_row_4.wgsl
const BY_TERMS = TRANSPOSE_A;
// include lib/subgroup_tile.wgsl

// The lane's share of 8 rows of A and terms k to k + 4: four neighbours in memory from number `at` on.
fn read_share(at: u32, k: u32, lane: u32) -> vec4<f32> {
  let share = read_a(at);
  if (K_EDGE) {
    let terms = select(vec4<u32>(k) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(k + lane % 4u), TRANSPOSE_A);
    return select(vec4<f32>(), share, terms < vec4<u32>(params.k));
  }
  return share;
}

// Of up to 32 rows, whose shares begin at `first` and are `eight` apart.
fn read_shares(first: u32, eight: u32, k: u32, lane: u32) -> mat4x4<f32> {
  var shares: mat4x4<f32>;
  shares[0] = read_share(first, k, lane);
  if (ROWS > 8u) {
    shares[1] = read_share(first + eight, k, lane);
  }
  if (ROWS > 16u) {
    shares[2] = read_share(first + 2u * eight, k, lane);
    shares[3] = read_share(first + 3u * eight, k, lane);
  }
  return shares;
}

fn store_rows(m: u32, n: u32, sums: Sums) {
  for (var r = 0u; r < 8u; r++) {
    store_row(m + r, n, sums[r]);
  }
}

fn store_tile(m: u32, n: u32, sums: Tile) {
  if (ROWS > 32u) {
    store_rows(m, n, sums.c0);
    store_rows(m + 8u, n, sums.c1);
    store_rows(m + 16u, n, sums.c2);
    store_rows(m + 24u, n, sums.c3);
  } else {
    // The drivers that tall tiles are not for take a second longer to compile 32 stores and what is fused into them. A loop with this bound they do not unroll.
    var rows = array<Sums, 4>(sums.c0, sums.c1, sums.c2, sums.c3);
    for (var r = 0u; r < ROWS && m + r < params.m; r++) {
      store_row(m + r, n, rows[r / 8u][r % 8u]);
    }
  }
}

@compute @workgroup_size(8)
fn forward(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(subgroup_invocation_id) lane: u32) {
  let tile = tile_at(flat_workgroup(id, count), ROWS, 32u);
  if (tile.w == 0u) {
    return;
  }
  let m = tile.x;
  let n = tile.y + lane * 4u;
  // Where the lane's first share begins, and how far on those of the next rows and terms do.
  let first = a_base + select((m + lane) * params.k, lane % 4u * params.m + m + lane / 4u * 4u, TRANSPOSE_A);
  let eight = 8u * select(params.k, 1u, TRANSPOSE_A);
  let term = select(1u, params.m, TRANSPOSE_A);
  var c = Tile();
  var below = Tile();
  var k = tile.z;
  loop {
    // All loads come before all products: their code branches, and what does not fit registers is put aside around each.
    let b = read_block_b(k, n);
    let at = first + k * term;
    let a0 = read_shares(at, eight, k, lane);
    var a1: mat4x4<f32>;
    if (ROWS > 32u) {
      a1 = read_shares(at + 4u * eight, eight, k, lane);
    }
    c = add_product(c, a0, b);
    if (ROWS > 32u) {
      below = add_product(below, a1, b);
    }
    continuing {
      k += 4u;
      break if k >= tile.w;
    }
  }
  store_tile(m, n, c);
  if (ROWS > 32u) {
    store_tile(m + 32u, n, below);
  }
}
