// Rows of a table by index, and the gradient of the table. An index beyond the table reads the nearest row, as no kernel can throw. The table
// (lib/weights.wgsl) may be a part of a longer one; rows of other parts are then 0.
// include lib/index.wgsl
// prologue
alias T = f32;
alias G = f32;
alias V = f32;
alias I = i32;
const WIDTH = 1u; // elements of V, T and G
// end prologue
// include lib/lanes_1.wgsl
// include lib/weights.wgsl

struct Params {
  tokens: u32,
  rows: u32,
  first: u32, // row of the whole table that is the part's first
  total: u32, // rows of the whole table
  n: u32, // columns
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> ids: array<I>;
@group(0) @binding(3) var<storage, read_write> y: array<T>;
@group(0) @binding(4) var<storage, read> dy: array<G>;
@group(0) @binding(5) var<storage, read_write> dtable: array<V>;

// Columns in V.
fn columns() -> u32 {
  return params.n / WIDTH;
}

fn row_of(token: u32) -> u32 {
  return u32(clamp(ids[token], I(0), I(params.total - 1u)));
}

@compute @workgroup_size(64)
fn forward(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let i = flat_workgroup(id, count) * 64u + lane;
  if (i >= params.tokens * columns()) {
    return;
  }
  let row = row_of(i / columns()) - params.first;
  if (row >= params.rows) {
    y[i] = T(0.0);
    return;
  }
  let v = table(row * params.n + i % columns() * WIDTH);
  y[i] = T(lanes(v.x, v.y, v.z, v.w));
}

// For short tables: every row adds its tokens in order.
@compute @workgroup_size(64)
fn grad_rows(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let i = flat_workgroup(id, count) * 64u + lane;
  if (i >= params.rows * columns()) {
    return;
  }
  let row = i / columns();
  var total = V(0.0);
  for (var token = 0u; token < params.tokens; token++) {
    if (row_of(token) == row) {
      total += V(dy[token * columns() + i % columns()]);
    }
  }
  dtable[i] = total;
}

// For long tables, after zeros were written: the first token of each row adds it and all later ones.
@compute @workgroup_size(64)
fn grad_tokens(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let i = flat_workgroup(id, count) * 64u + lane;
  if (i >= params.tokens * columns()) {
    return;
  }
  let first = i / columns();
  let row = row_of(first);
  for (var token = 0u; token < first; token++) {
    if (row_of(token) == row) {
      return;
    }
  }
  var total = V(0.0);
  for (var token = first; token < params.tokens; token++) {
    if (row_of(token) == row) {
      total += V(dy[token * columns() + i % columns()]);
    }
  }
  dtable[row * columns() + i % columns()] = total;
}
