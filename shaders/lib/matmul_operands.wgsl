// The operands of the matmul kernels, their place in memory, and 4x4 blocks of them from storage. B is what lib/weights.wgsl reads.
struct Params {
  m: u32,
  n: u32,
  k: u32,
  tiles_m: u32,
  tiles_n: u32,
  batch: u32,
  slices: u32, // batch times the number of parts that k is split into
  slice_k: u32, // length of a part
  a_stride: u32, // elements from one batch to the next; 0 if shared
  b_rows: u32, // rows from one batch to the next, as b is stored; 0 if shared
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<A>;
@group(0) @binding(3) var<storage, read_write> y: array<Y>;

// Elements, and of b stored rows, before this invocation's matrices.
var<private> a_base: u32;
var<private> b_first: u32;
var<private> y_base: u32;

// The i-th tile of `height` rows and `width` columns: its first row and column, where its part of k begins (a multiple of the loop's step), and where that ends: at 0 if there is no such tile.
// Sets where its matrices begin.
fn tile_at(i: u32, height: u32, width: u32) -> vec4<u32> {
  let tiles = params.tiles_m * params.tiles_n;
  let slice = i / tiles;
  let batch = slice % params.batch;
  a_base = batch * params.a_stride;
  b_first = batch * params.b_rows;
  y_base = slice * params.m * params.n;
  let k = slice / params.batch * params.slice_k;
  return vec4<u32>(i % tiles / params.tiles_n * height, i % params.tiles_n * width, k, select(0u, min(k + params.slice_k, params.k), slice < params.slices));
}

// epilogue
fn epilogue(v: V, i: u32, column: u32) -> V {
  return v;
}
// end epilogue

// Four neighbours in memory. A4(…) takes a scalar or a vec4 of A's type alike: the branch not taken must still compile.
fn read_a(i: u32) -> vec4<f32> {
  if (A_WIDE) {
    return vec4<f32>(A4(a[i / 4u]));
  }
  return vec4<f32>(vec4<f32>(A4(a[i])).x, vec4<f32>(A4(a[i + 1u])).x, vec4<f32>(A4(a[i + 2u])).x, vec4<f32>(A4(a[i + 3u])).x);
}

// Length of the sums.
fn reduction() -> u32 {
  return params.k;
}

// include lib/cut_columns.wgsl

// Rows and columns outside C are read from wherever they fall, clamped by WebGPU, and never stored; only k must be cut exactly.
fn cut_k(x: mat4x4<f32>, k: u32) -> mat4x4<f32> {
  if (!K_EDGE) {
    return x;
  }
  return cut_columns(x, k, params.k);
}

// Column j is A[m + j][k..k+4].
fn read_block_a(m: u32, k: u32) -> mat4x4<f32> {
  if (TRANSPOSE_A) {
    let i = a_base + k * params.m + m;
    return transpose(cut_k(mat4x4<f32>(read_a(i), read_a(i + params.m), read_a(i + 2u * params.m), read_a(i + 3u * params.m)), k));
  }
  let i = a_base + m * params.k + k;
  let x = mat4x4<f32>(read_a(i), read_a(i + params.k), read_a(i + 2u * params.k), read_a(i + 3u * params.k));
  if (!K_EDGE) {
    return x;
  }
  return transpose(cut_k(transpose(x), k));
}

// Column j is B[k + j][n..n+4].
fn read_block_b(k: u32, n: u32) -> mat4x4<f32> {
  return cut_k(weight_block(b_first, k, n), k);
}
