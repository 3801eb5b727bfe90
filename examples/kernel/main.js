// One kernel alone: a 3x3 convolution over buffers of this page, recorded into this page's encoder, checked, and timed against the device's peak.
import { compile, Engine, Graph, measurePeak, ops, profile } from 'bruit';

const adapter = await navigator.gpu.requestAdapter();
const device = await adapter.requestDevice({ requiredFeatures: ['timestamp-query'].filter((feature) => adapter.features.has(feature)) });
const engine = await Engine.create({ device });

// Inside, images are [N,H,W,C] and weights [R,S,C,K].
const [size, channels] = [32, 64];
const graph = new Graph();
const x = graph.input('x', [1, size, size, channels]);
const w = graph.parameter('w', [3, 3, channels, channels]);
const y = ops.conv2d(x, w, { padding: 1 });
const own = (t) => ({ buffer: device.createBuffer({ size: t.bytes, usage: GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST }), offset: 0 });
const bindings = new Map([x, w, y].map((t) => [t, own(t)]));
const program = await compile(engine, graph, { outputs: [y], bindings });

// Ones everywhere: a pixel inside sums 9 neighbours of 64 channels, one in a corner 4.
for (const t of [x, w]) device.queue.writeBuffer(bindings.get(t).buffer, 0, new Float32Array(t.bytes / 4).fill(1));
const encoder = device.createCommandEncoder();
program.encode(encoder);
const result = device.createBuffer({ size: y.bytes, usage: GPUBufferUsage.COPY_DST | GPUBufferUsage.MAP_READ });
encoder.copyBufferToBuffer(bindings.get(y).buffer, 0, result, 0, y.bytes);
device.queue.submit([encoder.finish()]);
await result.mapAsync(GPUMapMode.READ);
const values = new Float32Array(result.getMappedRange());
const corner = values[0];
const inside = values[(size + 1) * channels];

const { total, adapter: name, note } = await profile(program, { runs: 5 });
const peak = await measurePeak(engine);
const gflops = (2 * 9 * channels * channels * size * size) / total;
document.querySelector('pre').textContent = [
  `${name}${note ? ` (${note})` : ''}`,
  `conv2d 3x3, ${channels} channels, ${size}x${size}: ${(total / 1e6).toFixed(3)} ms, ${gflops.toFixed(2)} GFLOP/s, ${((100 * gflops * 1e9) / peak.f32).toFixed(0)}% of peak`,
  `corner ${corner}, inside ${inside}`,
].join('\n');
program.destroy(); // the buffers above stay: they are this page's
document.title = 'done';
