import { readdir, readFile, stat } from 'node:fs/promises';
import { extname, join } from 'node:path';
import { checkIndex, type ImageDataset } from '../data/dataset';
import { bytesToSigned, fitCanvas, resizeImage, type ResizeFilter } from '../data/transform';
import { BruitError, check } from '../engine/errors';
import { decodeImage } from '../io/decode_image';
import { fileError } from './files';

export interface ImageFolderOptions {
  /** Height and width of every image: the shorter side is fitted, the longer one cropped around its centre. */
  readonly size: number | readonly [number, number];
  /** 3 for RGB (default), 1 for grey (ITU-R 601 luma, as PIL). */
  readonly channels?: 1 | 3;
  readonly filter?: ResizeFilter;
  /** Bytes of decoded and resized images that may stay in memory; default 512 MiB. */
  readonly cacheBytes?: number;
}

const EXTENSIONS = new Set(['.png', '.jpg', '.jpeg']);
/** Code unit order, the same on every machine whatever its locale. */
const byName = (a: string, b: string): number => (a < b ? -1 : a > b ? 1 : 0);

/**
 * A folder of PNG and JPEG files. Its sub-folders, in sorted order, are the classes, with their files at any depth
 * (torchvision's `ImageFolder`); a folder with files only has no classes. Hidden files and other kinds are skipped.
 * Files are decoded when first asked for; an unreadable one is an error that names it.
 */
export async function loadImageFolder(folder: string, options: ImageFolderOptions): Promise<ImageDataset> {
  sizeOf(options); // before the disk is searched
  const classes = await listFolder(folder, 'folders');
  const files: LabelledFile[] = [];
  for (const [label, name] of classes.entries()) {
    const found = await findImages(join(folder, name), true);
    check(found.length > 0, 'input', () => `${join(folder, name)}: this class folder has no PNG or JPEG files.`);
    files.push(...found.map((path) => ({ path, label })));
  }
  const loose = await findImages(folder, false);
  check(classes.length === 0 || loose.length === 0, 'input', () => `${folder}: has class folders (${classes.slice(0, 3).join(', ')}${classes.length > 3 ? ', …' : ''}) and loose images (${loose[0]}) side by side; move the images into a class.`);
  files.push(...loose.map((path) => ({ path, label: 0 })));
  check(files.length > 0, 'input', () => `${folder}: has no PNG or JPEG files, nor class folders with some.`);
  return imageFiles(folder, files, classes.length > 0 ? classes : undefined, options);
}

function sizeOf({ size }: ImageFolderOptions): readonly [number, number] {
  const [height, width] = typeof size === 'number' ? [size, size] : size;
  check([height, width].every((n) => Number.isInteger(n) && n > 0), 'input', () => `image size ${height}x${width}: must be whole numbers above 0.`);
  return [height, width];
}

interface LabelledFile {
  readonly path: string;
  readonly label: number;
}

/** Image files as a data set. */
export function imageFiles(name: string, files: readonly LabelledFile[], classes: readonly string[] | undefined, options: ImageFolderOptions): ImageDataset {
  const [height, width] = sizeOf(options);
  const { channels = 3, filter = 'area', cacheBytes = 2 ** 29 } = options;
  check(channels === 1 || channels === 3, 'input', () => `${channels as number} channels: must be 1 (grey) or 3 (RGB).`);

  const size = channels * height * width;
  const cache = new Map<number, Uint8Array>();
  const pixels = async (index: number, path: string): Promise<Uint8Array> => {
    const known = cache.get(index);
    if (known) return known;
    const bytes = await readFile(path).catch((error: unknown) => {
      throw fileError('read', path, error);
    });
    const image = preprocess(bytes, path, channels, [height, width], filter);
    if ((cache.size + 1) * size <= cacheBytes) cache.set(index, image);
    return image;
  };
  return {
    name,
    length: files.length,
    shape: [channels, height, width],
    classes,
    async get(index) {
      const { path, label } = files[checkIndex(index, files.length, name)]!;
      return { image: bytesToSigned(await pixels(index, path)), label };
    },
  };
}

/** Decodes, converts colours, fits the shorter side and crops: CHW bytes, kept as bytes so that caching changes nothing. */
function preprocess(bytes: Uint8Array, path: string, channels: 1 | 3, [height, width]: readonly [number, number], filter: ResizeFilter): Uint8Array {
  const raster = decodeImage(bytes, path);
  const plane = raster.width * raster.height;
  const chw = new Float32Array(channels * plane);
  for (let p = 0; p < plane; p++) {
    const [r, g, b] = raster.channels === 3 ? [raster.data[3 * p]!, raster.data[3 * p + 1]!, raster.data[3 * p + 2]!] : [raster.data[p]!, raster.data[p]!, raster.data[p]!];
    if (channels === 1) chw[p] = 0.299 * r + 0.587 * g + 0.114 * b;
    else {
      chw[p] = r;
      chw[plane + p] = g;
      chw[2 * plane + p] = b;
    }
  }
  const scale = Math.max(height / raster.height, width / raster.width);
  const fitted = [Math.max(height, Math.round(raster.height * scale)), Math.max(width, Math.round(raster.width * scale))] as const;
  const resized = fitted[0] === raster.height && fitted[1] === raster.width ? chw : resizeImage(chw, [channels, raster.height, raster.width], fitted, filter);
  return Uint8Array.from(fitCanvas(resized, [channels, ...fitted], [height, width], 0), Math.round);
}

async function listFolder(folder: string, kind: 'files' | 'folders'): Promise<string[]> {
  try {
    const names = (await readdir(folder)).filter((name) => !name.startsWith('.')).sort(byName);
    const kinds = await Promise.all(names.map((name) => stat(join(folder, name)))); // follows links, as data sets are often linked in
    return names.filter((_, i) => (kind === 'files' ? kinds[i]!.isFile() : kinds[i]!.isDirectory()));
  } catch (error) {
    if (error instanceof BruitError) throw error;
    throw fileError('read', folder, error);
  }
}

async function findImages(folder: string, recursive: boolean): Promise<string[]> {
  const files = (await listFolder(folder, 'files')).filter((name) => EXTENSIONS.has(extname(name).toLowerCase())).map((name) => join(folder, name));
  if (recursive) for (const name of await listFolder(folder, 'folders')) files.push(...(await findImages(join(folder, name), true)));
  return files;
}
