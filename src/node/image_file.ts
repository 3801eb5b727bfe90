import { readFile } from 'node:fs/promises';
import { resizeImage } from '../data/transform';
import { BruitError } from '../engine/errors';
import { decodeImage } from '../io/decode_image';
import type { ImageBatch } from '../io/png';
import { fileError } from './files';

export interface ImageFileOptions {
  /** [height, width], to which images of other sizes are resized as PIL's LANCZOS does, without regard to their proportions. */
  readonly size?: readonly [number, number] | undefined;
  /** 3 for RGB (default), 1 for grey. */
  readonly channels?: 1 | 3;
}

/**
 * Reads PNG and JPEG files as one batch [N,C,H,W] in [0,1].
 * @throws BruitError `io` or `input` naming the file; `input` where files differ in size and none is given.
 */
export async function readImages(paths: readonly string[], { size, channels = 3 }: ImageFileOptions = {}): Promise<ImageBatch> {
  const images: Float32Array[] = [];
  let shape = size;
  for (const path of paths) {
    const bytes = await readFile(path).catch((error: unknown) => {
      throw fileError('read', path, error);
    });
    const { width, height, channels: own, data } = decodeImage(bytes, path);
    const plane = width * height;
    const chw = new Float32Array(channels * plane);
    for (let p = 0; p < plane; p++) {
      const at = (c: number): number => data[p * own + (own === 3 ? c : 0)]!;
      if (channels === 1) chw[p] = 0.299 * at(0) + 0.587 * at(1) + 0.114 * at(2);
      else for (let c = 0; c < 3; c++) chw[c * plane + p] = at(c);
    }
    shape ??= [height, width];
    const [toHeight, toWidth] = shape;
    if (!size && (toHeight !== height || toWidth !== width)) throw new BruitError('input', `${path} is ${width}x${height}, but ${paths[0]} is ${toWidth}x${toHeight}: images of one batch must have one size`);
    const resized = toHeight === height && toWidth === width ? chw : resizeImage(chw, [channels, height, width], shape, 'lanczos');
    images.push(resized.map((v) => Math.min(Math.max(Math.round(v), 0), 255) / 255));
  }
  const data = new Float32Array(images.reduce((n, image) => n + image.length, 0));
  images.forEach((image, i) => data.set(image, i * image.length));
  return { data, shape: [images.length, channels, ...(shape ?? [0, 0])] as ImageBatch['shape'] };
}
