// Rows of a table by index, and the gradient of the table. An index beyond the table reads the nearest row, as no kernel can throw.
// include lib/index.wgsl
// prologue
alias T = f32;
alias G = f32;
alias V = f32;
alias I = i32;
// end prologue

struct Params {
  tokens: u32,
  rows: u32,
  columns: u32, // in V
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> table: array<T>;
@group(0) @binding(2) var<storage, read> ids: array<I>;
@group(0) @binding(3) var<storage, read_write> y: array<T>;
@group(0) @binding(4) var<storage, read> dy: array<G>;
@group(0) @binding(5) var<storage, read_write> dtable: array<V>;

fn row_of(token: u32) -> u32 {
  return u32(clamp(ids[token], I(0), I(params.rows - 1u)));
}

@compute @workgroup_size(64)
fn forward(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let i = flat_workgroup(id, count) * 64u + lane;
  if (i >= params.tokens * params.columns) {
    return;
  }
  y[i] = table[row_of(i / params.columns) * params.columns + i % params.columns];
}

// For short tables: every row adds its tokens in order.
@compute @workgroup_size(64)
fn grad_rows(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let i = flat_workgroup(id, count) * 64u + lane;
  if (i >= params.rows * params.columns) {
    return;
  }
  let row = i / params.columns;
  var total = V(0.0);
  for (var token = 0u; token < params.tokens; token++) {
    if (row_of(token) == row) {
      total += V(dy[token * params.columns + i % params.columns]);
    }
  }
  dtable[i] = total;
}

// For long tables, after zeros were written: the first token of each row adds it and all later ones.
@compute @workgroup_size(64)
fn grad_tokens(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let i = flat_workgroup(id, count) * 64u + lane;
  if (i >= params.tokens * params.columns) {
    return;
  }
  let first = i / params.columns;
  let row = row_of(first);
  for (var token = 0u; token < first; token++) {
    if (row_of(token) == row) {
      return;
    }
  }
  var total = V(0.0);
  for (var token = first; token < params.tokens; token++) {
    if (row_of(token) == row) {
      total += V(dy[token * params.columns + i % params.columns]);
    }
  }
  dtable[row * params.columns + i % params.columns] = total;
}
