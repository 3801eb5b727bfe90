// Dispatches beyond 65,535 workgroups are folded over y (Program does it): this is the index in one dimension.
// Workgroups past the last one exist then, so kernels check their index.
fn flat_workgroup(id: vec3<u32>, count: vec3<u32>) -> u32 {
  return id.x + id.y * count.x;
}
