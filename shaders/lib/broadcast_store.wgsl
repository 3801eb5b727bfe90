// Stores the tile of lib/broadcast_tile.wgsl. The including shader provides store_element (lib/store_row_1.wgsl) and
//   fn tile_row(m: u32) -> u32                   row of the stored result, beyond params.m where there is none
//   fn lane_column(lane: u32, j: u32) -> u32     the lane's columns within the tile
// `m` and `n` are the tile's first row and column. A loop, so that the epilogue is compiled once.
fn store_tile(m: u32, n: u32, lane: u32) {
  var c = tile();
  for (var r = 0u; r < 8u; r++) {
    let row = tile_row(m + r);
    for (var j = 0u; j < 4u; j++) {
      store_element(row, n + lane_column(lane, j), c[r][j]);
    }
  }
}
