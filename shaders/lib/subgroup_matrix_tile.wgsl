// A tile of a matrix product in subgroup matrices (WebGPU feature chromium-experimental-subgroup-matrix): fragments of FRAGMENT_M x FRAGMENT_N
// of C, which the lanes of a subgroup hold together and multiply by one instruction of the hardware where it has one.
// A and B pass through workgroup memory STAGE_K at a time, as Component; sums are f32. SUBGROUPS_M x SUBGROUPS_N subgroups share the tile, each
// with FRAGMENTS_M x FRAGMENTS_N fragments. How many lanes a subgroup has is the driver's choice, up to the adapter's most: LANES counts with that,
// and where there are more subgroups than were counted, the further ones only stage and store.
// The including shader provides
//   const A_ALONG_K, B_ALONG_K                              whether k is the dimension that is contiguous in memory
//   fn block_a(turn: u32, m: u32, k: u32) -> mat4x4<f32>    column j is A[m + j][k..k+4] of the tile, 0 beyond K
//   fn block_b(k: u32, n: u32) -> mat4x4<f32>               column j is B[k + j][n..n+4] of the tile, 0 beyond K
//   fn store_four(m: u32, n: u32, c: vec4<f32>)             stores C[m][n..n+4] of the tile; drops what lies outside
// prologue
alias Component = f16;
const FRAGMENT_M = 8u;
const FRAGMENT_N = 8u;
const FRAGMENT_K = 8u;
const FRAGMENTS_M = 4u;
const FRAGMENTS_N = 4u;
const SUBGROUPS_M = 2u;
const SUBGROUPS_N = 2u;
const LANES = 128u; // of the workgroup
const STAGE_K = 32u;
// end prologue

alias Left = subgroup_matrix_left<Component, FRAGMENT_K, FRAGMENT_M>;
alias Right = subgroup_matrix_right<Component, FRAGMENT_N, FRAGMENT_K>;
alias Result = subgroup_matrix_result<f32, FRAGMENT_N, FRAGMENT_M>;

const SUBGROUP_ROWS = FRAGMENTS_M * FRAGMENT_M;
const SUBGROUP_COLUMNS = FRAGMENTS_N * FRAGMENT_N;
const TILE_M = SUBGROUPS_M * SUBGROUP_ROWS;
const TILE_N = SUBGROUPS_N * SUBGROUP_COLUMNS;

// Rows in workgroup memory are 8 elements longer than what they hold, so that the rows of a fragment begin in different banks, at 16 bytes.
const A_STRIDE = STAGE_K + 8u;
const B_STRIDE = TILE_N + 8u;
const C_STRIDE = TILE_N + 8u;
// One row of fragments of every subgroup.
const C_ROWS = SUBGROUPS_M * FRAGMENT_M;

// Row-major. Fragments are loaded from arrays of scalars.
var<workgroup> a_tile: array<Component, TILE_M * A_STRIDE>;
var<workgroup> b_tile: array<Component, STAGE_K * B_STRIDE>;
var<workgroup> c_tile: array<f32, C_ROWS * C_STRIDE>;

// Blocks of 4x4 that are staged, A's before B's, and how many of them a lane brings at most.
const K_BLOCKS = STAGE_K / 4u;
const M_BLOCKS = TILE_M / 4u;
const N_BLOCKS = TILE_N / 4u;
const A_BLOCKS = M_BLOCKS * K_BLOCKS;
const BLOCKS = A_BLOCKS + N_BLOCKS * K_BLOCKS;
const TURNS = (BLOCKS + LANES - 1u) / LANES;

// First row or column, and first k, of a block of A or B: neighbouring lanes read along the dimension that is contiguous in memory.
fn place_of(part: u32, parts: u32, along_k: bool) -> vec2<u32> {
  let by_k = vec2<u32>(part / K_BLOCKS, part % K_BLOCKS);
  let across = vec2<u32>(part % parts, part / parts);
  return 4u * select(across, by_k, along_k);
}

fn place_a(part: u32) -> vec2<u32> {
  return place_of(part, M_BLOCKS, A_ALONG_K);
}

fn place_b(part: u32) -> vec2<u32> {
  return place_of(part, N_BLOCKS, B_ALONG_K);
}

fn hold_a(at: u32, row: vec4<Component>) {
  a_tile[at] = row.x;
  a_tile[at + 1u] = row.y;
  a_tile[at + 2u] = row.z;
  a_tile[at + 3u] = row.w;
}

fn hold_b(at: u32, row: vec4<Component>) {
  b_tile[at] = row.x;
  b_tile[at + 1u] = row.y;
  b_tile[at + 2u] = row.z;
  b_tile[at + 3u] = row.w;
}

// k_begin and k_end are the same for the whole workgroup.
fn compute_tile(subgroup: u32, lane: u32, k_begin: u32, k_end: u32) {
  let multiplies = subgroup < SUBGROUPS_M * SUBGROUPS_N;
  let subgroup_m = subgroup / SUBGROUPS_N;
  let subgroup_n = subgroup % SUBGROUPS_N;
  var sums: array<array<Result, FRAGMENTS_N>, FRAGMENTS_M>;
  var staged: array<mat4x4<Component>, TURNS>;
  for (var k = k_begin; k < k_end; k += STAGE_K) {
    // Under way while other subgroups still multiply what was staged before.
    for (var turn = 0u; turn < TURNS; turn++) {
      let part = lane + turn * LANES;
      if (part < A_BLOCKS) {
        let place = place_a(part);
        staged[turn] = mat4x4<Component>(block_a(turn, place.x, k + place.y));
      } else if (part < BLOCKS) {
        let place = place_b(part - A_BLOCKS);
        staged[turn] = mat4x4<Component>(block_b(k + place.y, place.x));
      }
    }
    workgroupBarrier();
    for (var turn = 0u; turn < TURNS; turn++) {
      let part = lane + turn * LANES;
      let rows = staged[turn];
      if (part < A_BLOCKS) {
        let place = place_a(part);
        let at = place.x * A_STRIDE + place.y;
        hold_a(at, rows[0]);
        hold_a(at + A_STRIDE, rows[1]);
        hold_a(at + 2u * A_STRIDE, rows[2]);
        hold_a(at + 3u * A_STRIDE, rows[3]);
      } else if (part < BLOCKS) {
        let place = place_b(part - A_BLOCKS);
        let at = place.y * B_STRIDE + place.x;
        hold_b(at, rows[0]);
        hold_b(at + B_STRIDE, rows[1]);
        hold_b(at + 2u * B_STRIDE, rows[2]);
        hold_b(at + 3u * B_STRIDE, rows[3]);
      }
    }
    workgroupBarrier();
    if (multiplies) {
      for (var step = 0u; step < STAGE_K; step += FRAGMENT_K) {
        var left: array<Left, FRAGMENTS_M>;
        for (var i = 0u; i < FRAGMENTS_M; i++) {
          left[i] = subgroupMatrixLoad<Left, row_major>(&a_tile, (subgroup_m * SUBGROUP_ROWS + i * FRAGMENT_M) * A_STRIDE + step, A_STRIDE);
        }
        for (var j = 0u; j < FRAGMENTS_N; j++) {
          let right = subgroupMatrixLoad<Right, row_major>(&b_tile, step * B_STRIDE + subgroup_n * SUBGROUP_COLUMNS + j * FRAGMENT_N, B_STRIDE);
          for (var i = 0u; i < FRAGMENTS_M; i++) {
            sums[i][j] = subgroupMatrixMultiplyAccumulate(left[i], right, sums[i][j]);
          }
        }
      }
    }
  }
  // What a lane holds of a fragment is the driver's secret: the epilogue and the edges of C need elements, by way of workgroup memory.
  for (var i = 0u; i < FRAGMENTS_M; i++) {
    if (multiplies) {
      for (var j = 0u; j < FRAGMENTS_N; j++) {
        subgroupMatrixStore<row_major>(&c_tile, subgroup_m * FRAGMENT_M * C_STRIDE + subgroup_n * SUBGROUP_COLUMNS + j * FRAGMENT_N, sums[i][j], C_STRIDE);
      }
    }
    workgroupBarrier();
    for (var four = lane; four < C_ROWS * N_BLOCKS; four += LANES) {
      let row = four / N_BLOCKS;
      let n = four % N_BLOCKS * 4u;
      let at = row * C_STRIDE + n;
      let m = row / FRAGMENT_M * SUBGROUP_ROWS + i * FRAGMENT_M + row % FRAGMENT_M;
      store_four(m, n, vec4<f32>(c_tile[at], c_tile[at + 1u], c_tile[at + 2u], c_tile[at + 3u]));
    }
    workgroupBarrier();
  }
}
