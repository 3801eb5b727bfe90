/** Images that stay on the GPU: as bytes in a buffer, as textures, or (read back) as `ImageData`. */
import type { Engine } from './device';
import { BruitError, check } from './errors';
import { Graph, type Tensor } from './graph';
import { rowPitch, toRgba } from './ops/to_rgba';
import { compile, type BufferView, type Program } from './program';

const TextureUsage = { COPY_SRC: 1, COPY_DST: 2, TEXTURE_BINDING: 4, RENDER_ATTACHMENT: 16 } as const;

/**
 * Turns images in GPU memory, such as {@link GpuSampler.sampleView}, into pixels. {@link encode} records the conversion into the caller's command encoder;
 * nothing is read back unless {@link toImageData} is asked for.
 */
export class ImageOutput {
  private readonly textures: GPUTexture[] = [];

  private constructor(
    private readonly engine: Engine,
    private readonly program: Program,
    private readonly pixels: Tensor,
    readonly count: number,
    readonly height: number,
    readonly width: number,
  ) {}

  /**
   * @param images f32 [N,C,H,W] in GPU memory, C 1 (grey) or 3; read whenever the conversion runs.
   * @param range Values that become 0 and 255; [-1,1] by default, as samplers leave them.
   */
  static async create(engine: Engine, images: BufferView, shape: readonly [number, number, number, number], range: readonly [number, number] = [-1, 1]): Promise<ImageOutput> {
    const graph = new Graph();
    const x = graph.parameter('images', shape);
    const pixels = toRgba(x, range);
    const program = await compile(engine, graph, { outputs: [pixels], bindings: new Map([[x, images]]), label: 'image output' });
    return new ImageOutput(engine, program, pixels, shape[0], shape[2], shape[3]);
  }

  /** rgba8 pixels [N, H, bytesPerRow / 4]. */
  get buffer(): GPUBuffer {
    return this.program.view(this.pixels).buffer;
  }

  /** Bytes of a row in {@link buffer}: a multiple of 256, which copies to textures want. */
  get bytesPerRow(): number {
    return 4 * rowPitch(this.width);
  }

  /** Records the conversion of the images as they are when `encoder`'s commands run. */
  encode(encoder: GPUCommandEncoder): void {
    this.program.encode(encoder);
  }

  /** A texture for one image (rgba8unorm; bound, copied and drawn to), freed with this object unless the caller did it. Fill it with {@link copyToTexture}. */
  createTexture(): GPUTexture {
    const texture = this.engine.device.createTexture({ label: 'image output', size: [this.width, this.height], format: 'rgba8unorm', usage: TextureUsage.COPY_SRC | TextureUsage.COPY_DST | TextureUsage.TEXTURE_BINDING | TextureUsage.RENDER_ATTACHMENT });
    this.textures.push(texture);
    return texture;
  }

  /** Records a copy of image `index`, as {@link encode} left it, to `x`, `y` of an rgba8unorm texture with COPY_DST: one of the caller's, or a canvas's current one. */
  copyToTexture(encoder: GPUCommandEncoder, texture: GPUTexture, index = 0, [x, y]: readonly [number, number] = [0, 0]): void {
    this.checkIndex(index);
    check(texture.format.startsWith('rgba8unorm'), 'input', () => `copyToTexture: the texture's format is ${texture.format}; the pixels are rgba8unorm`);
    check(texture.width >= x + this.width && texture.height >= y + this.height, 'input', () => `copyToTexture: ${this.width} by ${this.height} pixels at ${x}, ${y} do not fit into a texture of ${texture.width} by ${texture.height}`);
    const { bytesPerRow, height } = this;
    encoder.copyBufferToTexture({ buffer: this.buffer, offset: index * height * bytesPerRow, bytesPerRow }, { texture, origin: [x, y] }, [this.width, height]);
  }

  /** Image `index` as it is now, read back. Only where there is `ImageData`: in pages and workers. */
  async toImageData(index = 0): Promise<ImageData> {
    this.checkIndex(index);
    if (typeof ImageData === 'undefined') throw new BruitError('input', 'toImageData: there is no ImageData here; read the numbers and use encodePng');
    const { bytesPerRow, width, height, engine } = this;
    const encoder = engine.device.createCommandEncoder();
    this.encode(encoder);
    engine.device.queue.submit([encoder.finish()]);
    const rows = new Uint8ClampedArray(await engine.readBuffer({ buffer: this.buffer, offset: index * height * bytesPerRow }, height * bytesPerRow));
    const image = new ImageData(width, height);
    for (let y = 0; y < height; y++) image.data.set(rows.subarray(y * bytesPerRow, y * bytesPerRow + 4 * width), 4 * width * y);
    return image;
  }

  private checkIndex(index: number): void {
    check(Number.isInteger(index) && index >= 0 && index < this.count, 'input', () => `there is no image ${index}: there are ${this.count}`);
  }

  /** Frees the pixels and the textures made here; the images are the caller's. */
  destroy(): void {
    this.program.destroy();
    for (const texture of this.textures) texture.destroy();
  }
}
