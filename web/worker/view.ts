/** Canvases drawn from GPU memory: no pixel passes through the host. */
import type { Engine } from '../../src/engine/device';
import type { BufferView } from '../../src/engine/program';
import shader from './view.wgsl';

/** What a canvas shows: `factors[0]`·A + `factors[1]`·B, images side by side. */
export interface Picture {
  readonly a: BufferView;
  readonly b?: BufferView;
  readonly factors?: readonly [number, number];
  readonly count: number;
  /** 1 (grey), 3 (RGB) or 4 (latents). */
  readonly channels: number;
  readonly height: number;
  readonly width: number;
  /** Of image, channel, row and column in elements; [N,C,H,W] by default. */
  readonly strides?: readonly [number, number, number, number];
  /** Values that are drawn black and white; [-1, 1] by default. */
  readonly range?: readonly [number, number];
  /** `signed` colours what is below and above the middle of `range`. */
  readonly scale?: 'grey' | 'signed';
  readonly columns?: number;
  /** Canvas pixels by image pixel, a whole number. */
  readonly zoom?: number;
}

export interface CanvasSize {
  readonly width: number;
  readonly height: number;
}

const paramBytes = 80;
const gap = 4;

/** Draws pictures on canvases that the page has handed over, by the names that it gave them. */
export class Views {
  private readonly canvases = new Map<string, { canvas: OffscreenCanvas; context: GPUCanvasContext; params: GPUBuffer }>();
  private readonly pipeline: GPURenderPipeline;
  private readonly format: GPUTextureFormat;
  private readonly last = new Map<string, CanvasSize>();

  constructor(private readonly engine: Engine) {
    const { device } = engine;
    this.format = navigator.gpu.getPreferredCanvasFormat();
    const module = device.createShaderModule({ label: 'view.wgsl', code: shader });
    const visibility = 2; // FRAGMENT
    const layout = device.createBindGroupLayout({
      entries: [
        { binding: 0, visibility, buffer: { type: 'uniform' } },
        { binding: 1, visibility, buffer: { type: 'read-only-storage' } },
        { binding: 2, visibility, buffer: { type: 'read-only-storage' } },
      ],
    });
    this.pipeline = device.createRenderPipeline({
      label: 'view',
      layout: device.createPipelineLayout({ bindGroupLayouts: [layout] }),
      vertex: { module, entryPoint: 'corner' },
      fragment: { module, entryPoint: 'pixel', targets: [{ format: this.format }] },
    });
  }

  attach(name: string, canvas: OffscreenCanvas): void {
    this.detach(name);
    const context = canvas.getContext('webgpu') as unknown as GPUCanvasContext;
    context.configure({ device: this.engine.device, format: this.format, alphaMode: 'premultiplied' });
    this.canvases.set(name, { canvas, context, params: this.engine.createBuffer(`view.${name}`, paramBytes, 64 | 8) }); // UNIFORM | COPY_DST
  }

  detach(name: string): void {
    const known = this.canvases.get(name);
    if (!known) return;
    known.context.unconfigure();
    this.engine.destroyBuffer(known.params);
    this.canvases.delete(name);
    this.last.delete(name);
  }

  /** Size of what was drawn last. */
  size(name: string): CanvasSize | undefined {
    return this.last.get(name);
  }

  draw(name: string, picture: Picture): CanvasSize | undefined {
    const target = this.canvases.get(name);
    if (!target) return undefined;
    const { device } = this.engine;
    const { a, b = a, factors = [1, 0], count, channels, height, width, range = [-1, 1], scale = 'grey' } = picture;
    const strides = picture.strides ?? [channels * height * width, height * width, width, 1];
    const columns = Math.min(picture.columns ?? Math.ceil(Math.sqrt(count)), count);
    const rows = Math.ceil(count / columns);
    const limit = device.limits.maxTextureDimension2D;
    const zoom = Math.max(1, Math.min(picture.zoom ?? Math.max(1, Math.floor(960 / (columns * width))), Math.floor(limit / (columns * width + gap * columns)), Math.floor(limit / (rows * height + gap * rows))));
    const size = { width: Math.min(columns * (width * zoom + gap) - gap, limit), height: Math.min(rows * (height * zoom + gap) - gap, limit) };
    const { canvas, context, params } = target;
    if (canvas.width !== size.width || canvas.height !== size.height) Object.assign(canvas, size);
    this.last.set(name, size);

    // Views begin at multiples of 256 bytes or anywhere in a buffer: the shader counts from the buffer's beginning.
    const words = new ArrayBuffer(paramBytes);
    const integers = new Uint32Array(words);
    integers.set([count, channels, height, width, columns, zoom, gap, scale === 'signed' ? 1 : 0, ...strides, a.offset / 4, b.offset / 4]);
    new Float32Array(words).set([...factors, ...range], 14);
    device.queue.writeBuffer(params, 0, words);
    const bindGroup = device.createBindGroup({
      layout: this.pipeline.getBindGroupLayout(0),
      entries: [params, a.buffer, b.buffer].map((buffer, binding) => ({ binding, resource: { buffer } })),
    });
    const encoder = device.createCommandEncoder();
    const pass = encoder.beginRenderPass({ colorAttachments: [{ view: context.getCurrentTexture().createView(), loadOp: 'clear', clearValue: [0, 0, 0, 0], storeOp: 'store' }] });
    pass.setPipeline(this.pipeline);
    pass.setBindGroup(0, bindGroup);
    pass.draw(3);
    pass.end();
    device.queue.submit([encoder.finish()]);
    return size;
  }
}
