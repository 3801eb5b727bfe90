/** Adapter, device, limits and features: what the engine may use, found out once. */
import { BruitError } from './errors';
import { Pace } from './pace';
import { PipelineCache } from './shader';

/** What kernels are chosen by. Every feature is optional; none is required. */
export interface AdapterProfile {
  /** `software` adapters (SwiftShader, llvmpipe) run invocations on CPU vectors: barriers are dear and caches are large. */
  readonly kind: 'gpu' | 'software';
  /** Vendor, architecture and description as far as the adapter tells them. */
  readonly name: string;
  readonly f16: boolean;
  readonly subgroups: boolean;
  /** Lanes of a subgroup where the feature is there and the adapter has one fixed size. */
  readonly subgroupSize: number | undefined;
  /** Where the device has them and its compiler knows them as the kernels write them. */
  readonly subgroupMatrix: SubgroupMatrix | undefined;
  readonly timestamps: boolean;
  readonly limits: {
    readonly maxStorageBuffersPerShaderStage: number;
    readonly maxStorageBufferBindingSize: number;
    readonly maxBufferSize: number;
    readonly maxComputeWorkgroupStorageSize: number;
    readonly maxComputeInvocationsPerWorkgroup: number;
    readonly maxComputeWorkgroupsPerDimension: number;
    readonly minStorageBufferOffsetAlignment: number;
    readonly minUniformBufferOffsetAlignment: number;
  };
}

/** The products that the hardware computes with the lanes of a subgroup together (`chromium-experimental-subgroup-matrix`). */
export interface SubgroupMatrix {
  /** Most lanes that a subgroup has. */
  readonly lanes: number;
  /** Products of M×K by K×N numbers of type `component` with sums in f32, in the adapter's order of preference. */
  readonly shapes: readonly MatrixShape[];
}

export interface MatrixShape {
  readonly component: 'f16' | 'f32';
  readonly m: number;
  readonly n: number;
  readonly k: number;
}

const profileLimits = [
  'maxStorageBuffersPerShaderStage',
  'maxStorageBufferBindingSize',
  'maxBufferSize',
  'maxComputeWorkgroupStorageSize',
  'maxComputeInvocationsPerWorkgroup',
  'maxComputeWorkgroupsPerDimension',
  'minStorageBufferOffsetAlignment',
  'minUniformBufferOffsetAlignment',
] as const;

const matrixFeature = 'chromium-experimental-subgroup-matrix' as GPUFeatureName;

/** Of GPUAdapterInfo, with the feature. */
interface MatrixInfo {
  readonly subgroupMaxSize?: number;
  readonly subgroupMatrixConfigs?: readonly { readonly componentType: string; readonly resultComponentType: string; readonly M: number; readonly N: number; readonly K: number }[];
}

/** What the device offers of subgroup matrices that kernels can use. The language of the experiment has changed before, so its compiler is asked. */
async function subgroupMatrixOf(device: GPUDevice, { subgroupMaxSize: lanes, subgroupMatrixConfigs = [] }: MatrixInfo): Promise<SubgroupMatrix | undefined> {
  if (!device.features.has(matrixFeature) || !device.features.has('shader-f16') || !lanes) return undefined;
  const shapes = [...subgroupMatrixConfigs].flatMap(({ componentType: component, resultComponentType, M: m, N: n, K: k }) =>
    resultComponentType === 'f32' && (component === 'f16' || component === 'f32') ? [{ component, m, n, k } as const] : [],
  );
  const [first] = shapes;
  if (!first) return undefined;
  const { component, m, n, k } = first;
  device.pushErrorScope('validation');
  device.createShaderModule({
    label: 'subgroup matrices',
    code: `enable chromium_experimental_subgroup_matrix;
enable subgroups;
enable f16;
var<workgroup> x: array<${component}, ${k * Math.max(m, n)}>;
var<workgroup> y: array<f32, ${m * n}>;
@compute @workgroup_size(${lanes})
fn probe(@builtin(subgroup_id) subgroup: u32) {
  if (subgroup == 0u) {
    let left = subgroupMatrixLoad<subgroup_matrix_left<${component}, ${k}, ${m}>, row_major>(&x, 0u, ${k}u);
    let right = subgroupMatrixLoad<subgroup_matrix_right<${component}, ${n}, ${k}>, row_major>(&x, 0u, ${n}u);
    subgroupMatrixStore<row_major>(&y, 0u, subgroupMatrixMultiplyAccumulate(left, right, subgroup_matrix_result<f32, ${n}, ${m}>()), ${n}u);
  }
}`,
  });
  return (await device.popErrorScope()) ? undefined : { lanes, shapes };
}

/** Reads a device's profile. Fields of `adapterInfo` may be missing in any browser; that of a device in Node leaves out the subgroup matrices of its adapter's. */
async function profileOf(device: GPUDevice, adapterInfo?: GPUAdapterInfo): Promise<AdapterProfile> {
  // Typed as always present, yet absent in older browsers.
  const info = adapterInfo ?? (device as { adapterInfo?: Partial<GPUAdapterInfo> }).adapterInfo;
  const name = [info?.vendor, info?.architecture, info?.device, info?.description].filter(Boolean).join(' ') || 'unknown adapter';
  const software = info?.isFallbackAdapter === true || /swiftshader|llvmpipe|lavapipe|software|basic render/i.test(name);
  const subgroups = device.features.has('subgroups' as GPUFeatureName);
  return {
    kind: software ? 'software' : 'gpu',
    name,
    f16: device.features.has('shader-f16'),
    subgroups,
    subgroupSize: subgroups && info?.subgroupMinSize === info?.subgroupMaxSize ? info?.subgroupMinSize : undefined,
    subgroupMatrix: await subgroupMatrixOf(device, (info ?? {}) as MatrixInfo),
    timestamps: device.features.has('timestamp-query'),
    limits: Object.fromEntries(profileLimits.map((k) => [k, device.limits[k]])) as unknown as AdapterProfile['limits'],
  };
}

export interface EngineOptions {
  /** A device of the caller's: used as it is and never destroyed by the engine. */
  device?: GPUDevice;
  /** Where to find an adapter; `navigator.gpu` by default. */
  gpu?: GPU;
  powerPreference?: GPUPowerPreference;
}

/** A device with its profile and pipeline cache. Several programs can share one engine. */
export class Engine {
  readonly pipelines: PipelineCache;
  /** How long submissions may take, and how fast the adapter works. */
  readonly pace: Pace;
  /** Kernel variants that programs compiled from now on use, by `tuningKey`: filled by `tune`, or from where that was stored. */
  readonly tuning = new Map<string, string>();
  private lostReason: string | undefined;

  private constructor(
    readonly device: GPUDevice,
    private readonly ownsDevice: boolean,
    readonly profile: AdapterProfile,
  ) {
    this.pipelines = new PipelineCache(device, profile);
    this.pace = new Pace(device.queue, profile.kind === 'software');
    void device.lost.then((info) => {
      this.lostReason = `${info.reason || 'unknown reason'}: ${info.message}`;
    });
  }

  /** Wraps the caller's device, or requests one with the adapter's own limits and the optional features that kernels can use. */
  static async create(options: EngineOptions = {}): Promise<Engine> {
    if (options.device) return new Engine(options.device, false, await profileOf(options.device));
    const gpu = options.gpu ?? (globalThis.navigator as Navigator | undefined)?.gpu;
    if (!gpu) {
      throw new BruitError('device', 'WebGPU is not available here: in a browser the page must be a secure context (https or http://localhost) of a browser with WebGPU; in Node use bruit/node.');
    }
    const adapter = await gpu.requestAdapter(options.powerPreference ? { powerPreference: options.powerPreference } : {});
    if (!adapter) throw new BruitError('device', 'No WebGPU adapter was found: the graphics driver is missing, blocked or too old.');
    const device = await requestDevice(adapter);
    return new Engine(device, true, await profileOf(device, adapter.info));
  }

  private readonly sizes = new Map<GPUBuffer, number>();

  /** Bytes of all buffers that programs and stores of this engine hold. */
  get liveBytes(): number {
    let total = 0;
    for (const bytes of this.sizes.values()) total += bytes;
    return total;
  }

  /** A counted buffer; give it back with {@link destroyBuffer}. */
  createBuffer(label: string, size: number, usage: GPUBufferUsageFlags): GPUBuffer {
    const buffer = this.device.createBuffer({ label, size, usage });
    this.sizes.set(buffer, size);
    return buffer;
  }

  destroyBuffer(buffer: GPUBuffer): void {
    this.sizes.delete(buffer);
    buffer.destroy();
  }

  /**
   * Runs `make`, which creates buffers, and finds out whether there was memory for them. What was made is the caller's to free, in any case.
   * @throws BruitError `limit` that begins with `what()`; `device` if the device was lost.
   */
  async withinMemory(make: () => void, what: () => string): Promise<void> {
    this.device.pushErrorScope('out-of-memory');
    let error: GPUError | null;
    try {
      make();
    } finally {
      error = await this.settle(this.device.popErrorScope());
    }
    if (error) throw new BruitError('limit', `${what()}: out of GPU memory (${error.message}). Use a smaller batch or image.`);
  }

  /** Copies `bytes` bytes of a tensor buffer to the host. */
  async readBuffer({ buffer, offset }: { buffer: GPUBuffer; offset: number }, bytes: number): Promise<ArrayBuffer> {
    const size = Math.ceil(bytes / 4) * 4;
    const staging = this.createBuffer('read-back', size, 9); // MAP_READ | COPY_DST
    try {
      const encoder = this.device.createCommandEncoder();
      encoder.copyBufferToBuffer(buffer, offset, staging, 0, size);
      this.device.queue.submit([encoder.finish()]);
      await this.settle(staging.mapAsync(1)); // GPUMapMode.READ
      return staging.getMappedRange().slice(0, bytes);
    } catch (e) {
      if (e instanceof BruitError) throw e;
      throw new BruitError('device', `Reading ${bytes} bytes back from the GPU failed: ${(e as Error).message}`, { cause: e });
    } finally {
      this.destroyBuffer(staging);
    }
  }

  /**
   * Awaits what the device promised.
   * @throws BruitError `device` where that failed because the device was lost: the news of it may come a little after the failure.
   */
  async settle<T>(promise: Promise<T>): Promise<T> {
    try {
      return await promise;
    } catch (e) {
      await new Promise((resolve) => setTimeout(resolve, 50));
      throw e;
    } finally {
      this.assertAlive();
    }
  }

  /** Whether the device was lost, by whatever cause: nothing made on this engine works any more. */
  get isLost(): boolean {
    return this.lostReason !== undefined;
  }

  /** Throws if the device was lost. */
  assertAlive(): void {
    if (this.lostReason !== undefined) {
      throw new BruitError('device', `The GPU device was lost (${this.lostReason}). Usual causes are running out of memory, a watchdog, or device.destroy(); create a new engine and compile again.`);
    }
  }

  /** Destroys the device if the engine made it. Programs and stores free their own buffers. */
  destroy(): void {
    if (this.ownsDevice) this.device.destroy();
  }
}

/** A device with everything the adapter offers that kernels can use. */
export function requestDevice(adapter: GPUAdapter): Promise<GPUDevice> {
  const features = (['shader-f16', 'subgroups', 'timestamp-query', matrixFeature] as GPUFeatureName[]).filter((f) => adapter.features.has(f));
  const limits = Object.fromEntries(
    (
      [
        'maxStorageBuffersPerShaderStage',
        'maxStorageBufferBindingSize',
        'maxBufferSize',
        'maxComputeWorkgroupStorageSize',
        'maxComputeInvocationsPerWorkgroup',
        'maxComputeWorkgroupSizeX',
      ] as const
    ).map((k) => [k, adapter.limits[k]]),
  );
  return adapter.requestDevice({ requiredFeatures: features, requiredLimits: limits });
}
