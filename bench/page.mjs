/**
 * The page of the race. `race.mjs` calls `window.race` step by step; every engine is a module with ours.mjs's `setup`. Dispatches and live bytes of
 * GPU buffers are counted by engine: only one works at a time.
 */

const accounts = new Map();
let current;

/** Wraps what makes, frees and dispatches, before any engine sees WebGPU. */
function count() {
  const owners = new WeakMap();
  const { createBuffer } = GPUDevice.prototype;
  GPUDevice.prototype.createBuffer = function (descriptor) {
    const buffer = createBuffer.call(this, descriptor);
    const account = accounts.get(current);
    account.live += descriptor.size;
    account.peak = Math.max(account.peak, account.live);
    owners.set(buffer, { account, size: descriptor.size });
    return buffer;
  };
  const { destroy } = GPUBuffer.prototype;
  GPUBuffer.prototype.destroy = function () {
    const owner = owners.get(this);
    if (owner) owner.account.live -= owner.size;
    owners.delete(this);
    destroy.call(this);
  };
  for (const name of ['dispatchWorkgroups', 'dispatchWorkgroupsIndirect']) {
    const dispatch = GPUComputePassEncoder.prototype[name];
    GPUComputePassEncoder.prototype[name] = function (...args) {
      accounts.get(current).dispatches += 1;
      dispatch.apply(this, args);
    };
  }
}

const engines = new Map();

const loaded = new Map();

/** A file that race.mjs wrote: named tensors. */
function load(name) {
  if (!loaded.has(name)) loaded.set(name, fetchTensors(name));
  return loaded.get(name);
}

async function fetchTensors(name) {
  const index = await (await fetch(`/data/${name}.json`)).json();
  const bytes = await (await fetch(`/data/${name}.bin`)).arrayBuffer();
  return index.map(({ name: tensor, shape, offset, length }) => ({ name: tensor, shape, data: new Float32Array(bytes, offset, length) }));
}

async function workload(w) {
  const tensors = await load(w.id);
  const pick = ({ shape, data }) => ({ shape, data });
  const expected = tensors.find(({ name }) => name === 'expected').data;
  const inputs = Object.fromEntries(tensors.filter(({ name }) => name !== 'expected').map((t) => [t.name, pick(t)]));
  return { w: { ...w, inputs, ...(w.kind === 'unet' || w.kind === 'train' ? { weights: await load('weights') } : {}) }, expected };
}

function requestDeviceWith({ features }) {
  return async ({ requiredFeatures = [] } = {}) => {
    const adapter = await navigator.gpu.requestAdapter();
    if (!adapter) throw new Error('no WebGPU adapter');
    const requiredLimits = {};
    for (const name in adapter.limits) if (typeof adapter.limits[name] === 'number') requiredLimits[name] = adapter.limits[name];
    return adapter.requestDevice({ requiredLimits, requiredFeatures: { all: [...adapter.features], asked: requiredFeatures, none: [] }[features] });
  };
}

/** Largest |a−b| over largest |b|. */
function difference(actual, expected) {
  if (actual.length !== expected.length) throw new Error(`${actual.length} numbers instead of ${expected.length}`);
  let [worst, largest] = [0, 0];
  for (let i = 0; i < expected.length; i++) {
    const d = Math.abs(actual[i] - expected[i]);
    if (!(d <= worst)) worst = d; // a NaN too
    largest = Math.max(largest, Math.abs(expected[i]));
  }
  return worst / largest;
}

/** Milliseconds of a run after which an engine is not run more than needed. */
const SLOW = 20_000;

const since = (start) => performance.now() - start;

/** Sets up an engine's row and runs it for the first time. */
async function open(name, url, w, options) {
  const { w: full, expected } = await workload(w);
  current = name;
  const account = { live: 0, peak: 0, dispatches: 0 };
  accounts.set(name, account);
  let start = performance.now();
  const { setup } = await import(url);
  const rows = await setup({ requestDevice: requestDeviceWith(options), opts: options });
  const setupMs = since(start);
  if (!rows[w.kind]) return { cannot: true };
  start = performance.now();
  const row = await rows[w.kind](full);
  if (!row) return { cannot: true };
  const prepareMs = since(start);
  engines.set(name, { rows, row });
  account.dispatches = 0;
  start = performance.now();
  await row.run(1);
  const firstMs = since(start);
  const { dispatches, peak } = account;
  let values = await row.read();
  const firstReadMs = since(start);
  let again;
  if (w.kind === 'train') {
    values = Array.from(values);
    // The second loss follows from an update, the third from moments that are not zero.
    while (values.length < expected.length && !(again > SLOW)) {
      start = performance.now();
      await row.run(1);
      again = since(start);
      values.push((await row.read())[0]);
    }
  }
  const error = difference(values, expected.slice(0, values.length));
  account.peak = peak; // without the read-back
  return { version: rows.version, setup_ms: setupMs, prepare_ms: prepareMs, first_ms: firstMs, again_ms: again, first_result_ms: setupMs + prepareMs + firstReadMs, dispatches, error, plan: row.plan, ...(w.kind === 'train' && { losses: values }) };
}

/** One sample: milliseconds a run, of `k` runs. */
async function round(name, k) {
  current = name;
  const start = performance.now();
  await engines.get(name).row.run(k);
  return since(start) / k;
}

/** Milliseconds of one run that pass before the host goes on: the median of `n`, each submitted to an idle device. */
async function host(name, n) {
  current = name;
  const times = [];
  for (let i = 0; i < n; i++) {
    const start = performance.now();
    const done = engines.get(name).row.run(1);
    times.push(since(start));
    await done;
  }
  return times.sort((a, b) => a - b)[n >> 1];
}

async function adapter() {
  const info = (await navigator.gpu.requestAdapter()).info;
  return { vendor: info.vendor, architecture: info.architecture, device: info.device, description: info.description, userAgent: navigator.userAgent };
}

window.race = {
  open,
  round,
  host,
  adapter,
  /** Fetches a row's data before anything is timed. */
  load: async (w) => void (await workload(w)),
  peak: (name) => accounts.get(name).peak,
  close: async (name) => {
    current = name;
    await engines.get(name)?.row.destroy?.();
    engines.delete(name);
  },
  /** Peak rates of the adapter, measured by our own kernels. */
  async measure(url) {
    current = 'peak';
    accounts.set(current, { live: 0, peak: 0, dispatches: 0 });
    const { setup } = await import(url);
    const { engine, measurePeak } = await setup({ requestDevice: requestDeviceWith({ features: 'asked' }) });
    const peak = await measurePeak();
    engine.device.destroy();
    return { flops_per_second: peak.f32, bytes_per_second: peak.bandwidth };
  },
};

count();
