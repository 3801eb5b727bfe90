// For each row of x [rows, columns] the row of a table that is nearest to it (the first, where several are): an invocation a row of x.
// include lib/index.wgsl
// prologue
alias X = f32; // x and table
// end prologue

struct Params {
  rows: u32,
  columns: u32,
  entries: u32, // rows of the table
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<X>;
@group(0) @binding(2) var<storage, read> table: array<X>;
@group(0) @binding(3) var<storage, read_write> nearest: array<u32>;

@compute @workgroup_size(64)
fn forward(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let row = flat_workgroup(id, count) * 64u + lane;
  if (row >= params.rows) {
    return;
  }
  var best = 0u;
  var least = 0.0;
  for (var entry = 0u; entry < params.entries; entry++) {
    // The squares of the differences: |x|² − 2 x·e + |e|² would lose what sets close entries apart.
    var distance = 0.0;
    for (var c = 0u; c < params.columns; c++) {
      let d = f32(x[row * params.columns + c]) - f32(table[entry * params.columns + c]);
      distance += d * d;
    }
    if (entry == 0u || distance < least) {
      best = entry;
      least = distance;
    }
  }
  nearest[row] = best;
}
