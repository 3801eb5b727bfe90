// lib/index.wgsl in a dispatch that may be cut into slices of as many workgroups each, submitted one by one: workgroups of earlier slices come first.
struct Slice {
  index: u32,
}

@group(0) @binding(100) var<uniform> slice: Slice;

fn flat_workgroup(id: vec3<u32>, count: vec3<u32>) -> u32 {
  return id.x + (id.y + slice.index * count.y) * count.x;
}
