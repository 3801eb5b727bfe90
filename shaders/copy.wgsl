// Strided copies: element (c0, c1, …) of a box goes from x[x_offset + Σ ck·xk] to y[y_offset + Σ ck·yk].
// Dimension 0 is the innermost; an invocation moves one T, which is four elements where the innermost run allows.
// Words are moved as bits (u32 stands for every 32-bit type), so a copy changes no NaN.
// include lib/index.wgsl
// prologue
alias T = u32;
const RANK = 6u;
// end prologue

struct Params {
  count: u32, // of T; offsets and strides are in T too
  x_offset: u32,
  y_offset: u32,
  n0: u32, x0: u32, y0: u32,
  n1: u32, x1: u32, y1: u32,
  n2: u32, x2: u32, y2: u32,
  n3: u32, x3: u32, y3: u32,
  n4: u32, x4: u32, y4: u32,
  n5: u32, x5: u32, y5: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<T>;
@group(0) @binding(2) var<storage, read_write> y: array<T>;

// Where element i of the box lies in x and y.
fn place(i: u32) -> vec2<u32> {
  var rest = i / params.n0;
  var at = vec2<u32>(params.x_offset, params.y_offset) + (i % params.n0) * vec2<u32>(params.x0, params.y0);
  if (RANK > 1u) {
    at += (rest % params.n1) * vec2<u32>(params.x1, params.y1);
    rest /= params.n1;
  }
  if (RANK > 2u) {
    at += (rest % params.n2) * vec2<u32>(params.x2, params.y2);
    rest /= params.n2;
  }
  if (RANK > 3u) {
    at += (rest % params.n3) * vec2<u32>(params.x3, params.y3);
    rest /= params.n3;
  }
  if (RANK > 4u) {
    at += (rest % params.n4) * vec2<u32>(params.x4, params.y4);
    rest /= params.n4;
  }
  if (RANK > 5u) {
    at += (rest % params.n5) * vec2<u32>(params.x5, params.y5);
  }
  return at;
}

@compute @workgroup_size(64)
fn forward(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let i = flat_workgroup(id, count) * 64u + lane;
  if (i >= params.count) {
    return;
  }
  let at = place(i);
  y[at.y] = x[at.x];
}

// Zeros in place of x.
@compute @workgroup_size(64)
fn fill(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let i = flat_workgroup(id, count) * 64u + lane;
  if (i >= params.count) {
    return;
  }
  y[place(i).y] = T();
}
