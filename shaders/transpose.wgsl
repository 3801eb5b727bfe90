// Copies whose innermost dimensions differ: x is contiguous along rows, y along columns, up to four batch dimensions around them.
// A plain copy would read or write every element from another cache line.
//   blocks: an invocation turns a 4x4 block in registers; no barrier, for software adapters. Needs everything divisible by 4.
//   tiled: a workgroup turns a 32x32 tile in workgroup memory, so that both sides are coalesced; any size.
// include lib/index.wgsl
// prologue
alias T = u32;
alias T4 = vec4<u32>;
// end prologue

struct Params {
  rows: u32,
  columns: u32,
  batch: u32,
  x_column: u32, // stride of columns in x; that of rows is 1
  y_row: u32, // stride of rows in y; that of columns is 1
  x_offset: u32,
  y_offset: u32,
  n0: u32, x0: u32, y0: u32, // batch dimensions, innermost first
  n1: u32, x1: u32, y1: u32,
  n2: u32, x2: u32, y2: u32,
  x3: u32, y3: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<T>;
@group(0) @binding(2) var<storage, read_write> y: array<T>;
@group(0) @binding(3) var<storage, read> x_blocks: array<T4>;
@group(0) @binding(4) var<storage, read_write> y_blocks: array<T4>;

// Where batch element b begins in x and y.
fn batch_place(b: u32) -> vec2<u32> {
  let b1 = b / params.n0;
  let b2 = b1 / params.n1;
  let b3 = b2 / params.n2;
  return vec2<u32>(params.x_offset, params.y_offset)
    + (b % params.n0) * vec2<u32>(params.x0, params.y0)
    + (b1 % params.n1) * vec2<u32>(params.x1, params.y1)
    + (b2 % params.n2) * vec2<u32>(params.x2, params.y2)
    + b3 * vec2<u32>(params.x3, params.y3);
}

@compute @workgroup_size(64)
fn blocks(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let i = flat_workgroup(id, count) * 64u + lane;
  let columns = params.columns / 4u;
  let rows = params.rows / 4u;
  if (i >= columns * rows * params.batch) {
    return;
  }
  let column = i % columns;
  let row = (i / columns) % rows;
  let at = batch_place(i / (columns * rows)) / 4u;
  let x_step = params.x_column / 4u;
  let y_step = params.y_row / 4u;
  let source = at.x + row + 4u * column * x_step;
  let a = x_blocks[source];
  let b = x_blocks[source + x_step];
  let c = x_blocks[source + 2u * x_step];
  let d = x_blocks[source + 3u * x_step];
  let destination = at.y + column + 4u * row * y_step;
  y_blocks[destination] = T4(a.x, b.x, c.x, d.x);
  y_blocks[destination + y_step] = T4(a.y, b.y, c.y, d.y);
  y_blocks[destination + 2u * y_step] = T4(a.z, b.z, c.z, d.z);
  y_blocks[destination + 3u * y_step] = T4(a.w, b.w, c.w, d.w);
}

// One element more than 32 a row keeps a column's elements in different banks.
var<workgroup> tile: array<T, 1056>;

@compute @workgroup_size(256)
fn tiled(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let i = flat_workgroup(id, count);
  let tile_columns = (params.columns + 31u) / 32u;
  let tile_rows = (params.rows + 31u) / 32u;
  let column = (i % tile_columns) * 32u;
  let row = ((i / tile_columns) % tile_rows) * 32u;
  let b = i / (tile_columns * tile_rows);
  let at = batch_place(b);
  let across = lane % 32u;
  let down = lane / 32u;
  // Workgroups past the last one must reach the barrier too.
  if (b < params.batch && row + across < params.rows) {
    for (var k = down; k < 32u; k += 8u) {
      if (column + k < params.columns) {
        tile[k * 33u + across] = x[at.x + row + across + (column + k) * params.x_column];
      }
    }
  }
  workgroupBarrier();
  if (b < params.batch && column + across < params.columns) {
    for (var k = down; k < 32u; k += 8u) {
      if (row + k < params.rows) {
        y[at.y + column + across + (row + k) * params.y_row] = tile[across * 33u + k];
      }
    }
  }
}
