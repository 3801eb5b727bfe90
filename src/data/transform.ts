import { check } from '../engine/errors';

/** Bytes as f32 in [-1,1], the range that the models see: 0 is -1, 255 is 1. */
export function bytesToSigned(bytes: Uint8Array): Float32Array {
  const out = new Float32Array(bytes.length); // a loop: typed array `from` with a function is ten times slower
  for (let i = 0; i < bytes.length; i++) out[i] = bytes[i]! / 127.5 - 1;
  return out;
}

/**
 * How a resize weighs source pixels: `area` is a box (means when shrinking, nearest when enlarging); `bilinear` a triangle and `lanczos` a windowed sinc
 * with three lobes, widened when shrinking, as PIL's BILINEAR and LANCZOS.
 */
export type ResizeFilter = 'area' | 'bilinear' | 'lanczos';

const sinc = (x: number): number => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));
/** By the distance from the centre in pixels of the coarser grid. */
const kernels = {
  bilinear: { radius: 1, at: (x: number): number => Math.max(0, 1 - Math.abs(x)) },
  lanczos: { radius: 3, at: (x: number): number => (Math.abs(x) < 3 ? sinc(x) * sinc(x / 3) : 0) },
};

/** For each of `to` outputs, the first source position and the weights (summing to 1) of the sources under the filter. */
function filterTaps(from: number, to: number, filter: ResizeFilter): { first: number; weights: number[] }[] {
  const scale = from / to;
  const width = Math.max(scale, 1);
  const support = filter === 'area' ? 0.5 * scale : width * kernels[filter].radius; // a box never reaches beyond the output pixel
  return Array.from({ length: to }, (_, i) => {
    const center = (i + 0.5) * scale;
    const first = Math.max(0, Math.floor(center - support));
    const last = Math.min(from, Math.max(first + 1, Math.ceil(center + support)));
    const weights: number[] = [];
    for (let j = first; j < last; j++) {
      weights.push(
        filter === 'area'
          ? Math.max(0, Math.min(j + 1, center + support) - Math.max(j, center - support)) // overlap of the pixel and the box
          : kernels[filter].at((j + 0.5 - center) / width),
      );
    }
    const total = weights.reduce((sum, w) => sum + w, 0);
    return { first, weights: weights.map((w) => w / total) };
  });
}

/** Resizes a CHW image [C,H,W] to [C,height,width], rows and columns apart. */
export function resizeImage(image: ArrayLike<number>, [channels, fromHeight, fromWidth]: readonly [number, number, number], [height, width]: readonly [number, number], filter: ResizeFilter = 'area'): Float32Array {
  check(height > 0 && width > 0, 'shape', () => `resize: the target ${height}x${width} has no pixels.`);
  check(image.length === channels * fromHeight * fromWidth, 'shape', () => `resize: ${image.length} values are not [${channels},${fromHeight},${fromWidth}].`);
  const across = filterTaps(fromWidth, width, filter);
  const down = filterTaps(fromHeight, height, filter);
  const rows = new Float32Array(channels * fromHeight * width);
  for (let row = 0; row < channels * fromHeight; row++) {
    for (let x = 0; x < width; x++) {
      const { first, weights } = across[x]!;
      let sum = 0;
      for (let k = 0; k < weights.length; k++) sum += weights[k]! * image[row * fromWidth + first + k]!;
      rows[row * width + x] = sum;
    }
  }
  const out = new Float32Array(channels * height * width);
  for (let c = 0; c < channels; c++) {
    for (let y = 0; y < height; y++) {
      const { first, weights } = down[y]!;
      for (let x = 0; x < width; x++) {
        let sum = 0;
        for (let k = 0; k < weights.length; k++) sum += weights[k]! * rows[(c * fromHeight + first + k) * width + x]!;
        out[(c * height + y) * width + x] = sum;
      }
    }
  }
  return out;
}

/** Centres a CHW image on a [C,height,width] canvas: cropped where it is larger, filled with `fill` where it is smaller (an odd pixel goes to the bottom or right). */
export function fitCanvas(image: ArrayLike<number>, [channels, fromHeight, fromWidth]: readonly [number, number, number], [height, width]: readonly [number, number], fill: number): Float32Array {
  const out = new Float32Array(channels * height * width).fill(fill);
  const top = Math.floor((height - fromHeight) / 2);
  const left = Math.floor((width - fromWidth) / 2);
  for (let c = 0; c < channels; c++) {
    for (let y = Math.max(0, top); y < Math.min(height, top + fromHeight); y++) {
      for (let x = Math.max(0, left); x < Math.min(width, left + fromWidth); x++) {
        out[(c * height + y) * width + x] = image[(c * fromHeight + y - top) * fromWidth + x - left]!;
      }
    }
  }
  return out;
}
