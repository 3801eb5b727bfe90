// Two tensors behind one another along an axis: as rows of the dimensions from that axis on, a's and b's in turn.
// Words are moved as bits (u32 stands for every 32-bit type), so a copy changes no NaN.
// include lib/index.wgsl
// prologue
alias T = u32; // one element, or four where both runs allow
// end prologue

struct Params {
  count: u32, // of T in y
  a: u32, // T in a row of a
  b: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<T>;
@group(0) @binding(2) var<storage, read> b: array<T>;
@group(0) @binding(3) var<storage, read_write> y: array<T>;

@compute @workgroup_size(64)
fn forward(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let i = flat_workgroup(id, count) * 64u + lane;
  if (i >= params.count) {
    return;
  }
  let row = i / (params.a + params.b);
  let column = i % (params.a + params.b);
  if (column < params.a) {
    y[i] = a[row * params.a + column];
  } else {
    y[i] = b[row * params.b + column - params.a];
  }
}
