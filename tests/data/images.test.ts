import { mkdir, mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { crc32, deflateSync, inflateSync } from 'node:zlib';
import fc from 'fast-check';
import { encode as encodeAny } from 'fast-png';
import { encode as encodeJpeg } from 'jpeg-js';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { BruitError } from '../../src/engine/errors';
import { drawText } from '../../src/io/bitmap_font';
import { decodeImage } from '../../src/io/decode_image';
import { checkImageSize, imageSize } from '../../src/io/image_size';
import { encodePng, imageGrid, imageRaster, toByte } from '../../src/io/png';
import { loadImageFolder } from '../../src/node/image_folder';
import { writePngFolder } from '../../src/node/png_folder';
import { pictures } from '../helpers/pictures.mjs';

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'bruit-images-'));
});
afterAll(() => rm(folder, { recursive: true }));

test('toByte rounds, clamps and takes NaN for black', () => {
  expect([-1, 0, 0.5 / 255 + 1e-9, 0.5, 1, 7, NaN, Infinity].map(toByte)).toEqual([0, 0, 1, 128, 255, 255, 0, 255]);
});

test('PNG round trip: any size, grey and RGB', () => {
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 37 }), fc.integer({ min: 1, max: 19 }), fc.constantFrom(1, 3), fc.integer(), (width, height, channels, seed) => {
      const data = Uint8Array.from({ length: width * height * channels }, (_, i) => Math.imul(i + seed, 2654435761) >>> 24);
      expect(decodeImage(encodePng({ width, height, channels: channels as 1 | 3, data }), 'x')).toEqual({ width, height, channels, data });
    }),
    { numRuns: 60 },
  );
});

/** A PNG's chunks, read by hand so as not to trust the library that wrote them. */
function chunks(png: Uint8Array): { type: string; data: Uint8Array }[] {
  const view = new DataView(png.buffer, png.byteOffset, png.byteLength);
  const out = [];
  for (let at = 8; at < png.length; at += 12 + view.getUint32(at)) {
    out.push({ type: String.fromCharCode(...png.subarray(at + 4, at + 8)), data: png.subarray(at + 8, at + 8 + view.getUint32(at)) });
  }
  return out;
}

test('imageRaster turns [N,C,H,W] in [0,1] into interleaved bytes, and the PNG holds those', () => {
  const data = Float32Array.from({ length: 2 * 3 * 2 * 2 }, (_, i) => i / 24);
  const raster = imageRaster({ data, shape: [2, 3, 2, 2] }, 1);
  expect(Array.from(raster.data)).toEqual([12, 16, 20, 13, 17, 21, 14, 18, 22, 15, 19, 23].map((i) => Math.round(data[i]! * 255)));
  const parts = chunks(encodePng(raster, { parameters: '{"seed":1,"prompt":"é→日"}', Software: 'bruit' }));
  expect(parts.map((p) => p.type)).toEqual(['IHDR', 'IDAT', 'tEXt', 'tEXt', 'IEND']);
  const scanlines = inflateSync(parts[1]!.data);
  expect(Array.from(scanlines)).toEqual([0, ...raster.data.subarray(0, 6), 0, ...raster.data.subarray(6)]);
  const [keyword, value] = new TextDecoder('latin1').decode(parts[2]!.data).split('\0');
  expect(keyword).toBe('parameters');
  expect(JSON.parse(value!)).toEqual({ seed: 1, prompt: 'é→日' });
});

test('imageGrid puts each image where its row and column say, with captions under, left and above', () => {
  const shape = [5, 1, 20, 24] as const; // every image one grey of its own
  const data = Float32Array.from({ length: 5 * 480 }, (_, i) => (Math.floor(i / 480) + 1) / 10);
  const images = { data, shape };
  const plain = imageGrid(images, { columns: 3, padding: 2, scale: 2 });
  expect([plain.width, plain.height]).toEqual([3 * 48 + 4 * 2, 2 * 40 + 3 * 2]);
  const at = (g: { width: number; data: Uint8Array }, x: number, y: number): number => g.data[y * g.width + x]!;
  for (let n = 0; n < 5; n++) {
    const [x, y] = [2 + (n % 3) * 50, 2 + Math.floor(n / 3) * 42];
    for (const [dx, dy] of [[0, 0], [47, 0], [0, 39], [47, 39]] as const) expect(at(plain, x + dx, y + dy)).toBe(toByte(Math.fround((n + 1) / 10)));
    expect([at(plain, x - 1, y), at(plain, x, y - 1), at(plain, x + 48, y), at(plain, x, y + 40)]).toEqual([255, 255, 255, 255]);
  }
  expect(at(plain, 110, 60)).toBe(255); // no sixth image

  const ink = (g: { data: Uint8Array }): number => g.data.filter((v) => v === 40).length;
  const dotsOf = (text: string): number => {
    let count = 0;
    drawText(text, () => count++);
    return count;
  };
  const labels = ['0', '1', '2', '3', '4'];
  const labelled = imageGrid(images, { columns: 3, scale: 2, labels });
  expect(ink(labelled)).toBe(dotsOf('01234')); // one pixel a dot at this size
  expect(labelled.height).toBeGreaterThan(plain.height);
  const framed = imageGrid(images, { columns: 3, scale: 2, rowLabels: ['DDIM', 'Euler'], columnLabels: ['a', 'b', 'c'] });
  expect(ink(framed)).toBe(dotsOf('DDIMEulerabc'));
  expect(framed.width).toBeGreaterThan(plain.width);
  expect(ink(imageGrid(images, { scale: 2, labels: labels.map(() => 'far too long a caption') }))).toBeGreaterThan(0);
  expect(() => imageGrid(images, { labels: ['a'] })).toThrow(/1 labels for 5/);
  expect(() => imageGrid({ data, shape: [5, 2, 20, 12] })).toThrow(/2 channels/);
  expect(() => imageGrid({ data, shape: [4, 1, 20, 24] })).toThrow(/2400 values are not \[4,1,20,24\]/);
});

test('every printable character has a glyph of its own', () => {
  const drawn = new Set<string>();
  for (let code = 0x20; code < 0x7f; code++) {
    const dots: string[] = [];
    drawText(String.fromCharCode(code), (x, y) => dots.push(`${x},${y}`));
    drawn.add(dots.join(' '));
  }
  expect(drawn.size).toBe(95);
});

test('decodeImage: palettes, packed grey, 16 bits and transparency', () => {
  const image = (png: Parameters<typeof encodeAny>[0]): number[] => Array.from(decodeImage(encodeAny(png), 'x').data);
  const palette = [[255, 0, 0], [0, 255, 0], [0, 0, 255]];
  expect(image({ width: 3, height: 1, channels: 1, depth: 8, data: Uint8Array.of(2, 0, 1), palette })).toEqual([0, 0, 255, 255, 0, 0, 0, 255, 0]);
  expect(image({ width: 5, height: 2, channels: 1, depth: 2, data: Uint8Array.of(0b00011011, 0b11000000, 0b11100100, 0b00000000) })).toEqual([0, 85, 170, 255, 255, 255, 170, 85, 0, 0]);
  expect(image({ width: 2, height: 1, channels: 1, depth: 16, data: Uint16Array.of(0x8000, 0xffff) })).toEqual([128, 255]);
  expect(image({ width: 3, height: 1, channels: 4, depth: 8, data: Uint8Array.of(10, 20, 30, 255, 10, 20, 30, 0, 0, 0, 0, 51) })).toEqual([10, 20, 30, 255, 255, 255, 204, 204, 204]);
  expect(image({ width: 2, height: 1, channels: 2, depth: 8, data: Uint8Array.of(0, 255, 0, 0) })).toEqual([0, 255]);
  expect(image({ width: 2, height: 1, channels: 1, depth: 8, data: Uint8Array.of(0, 1), palette: [[9, 8, 7, 0], [9, 8, 7, 255]] })).toEqual([255, 255, 255, 9, 8, 7]);
  const grey = { width: 13, height: 11, channels: 1, depth: 8 as const, data: Uint8Array.from({ length: 143 }, (_, i) => (i * 77) % 256) };
  expect(decodeImage(encodeAny(grey, { interlace: 'Adam7' }), 'x').data).toEqual(grey.data);
});

test('decodeImage: a colour named transparent by tRNS is laid over white', () => {
  const png = encodeAny({ width: 3, height: 1, channels: 3, depth: 8, data: Uint8Array.of(1, 2, 3, 1, 2, 4, 0, 2, 3) });
  const chunk = Uint8Array.of(0, 0, 0, 6, 0x74, 0x52, 0x4e, 0x53, 0, 1, 0, 2, 0, 3, 0xc9, 0x4b, 0xab, 0xf5); // length, 'tRNS', 1 2 3, CRC
  expect(Array.from(decodeImage(Uint8Array.from([...png.subarray(0, 33), ...chunk, ...png.subarray(33)]), 'x').data)).toEqual([255, 255, 255, 1, 2, 4, 0, 2, 3]);
});

// 16x8, left half 40 and right half 200, as libjpeg writes one component
test.each([
  ['baseline', '/9j/2wBDAAYEBQYFBAYGBQYHBwYIChAKCgkJChQODwwQFxQYGBcUFhYaHSUfGhsjHBYWICwgIyYnKSopGR8tMC0oMCUoKSj/wAALCAAIABABAREA/8QAFQABAQAAAAAAAAAAAAAAAAAABwj/xAAUEAEAAAAAAAAAAAAAAAAAAAAA/9oACAEBAAA/AApar//Z'],
  ['progressive', '/9j/2wBDAAYEBQYFBAYGBQYHBwYIChAKCgkJChQODwwQFxQYGBcUFhYaHSUfGhsjHBYWICwgIyYnKSopGR8tMC0oMCUoKSj/wgALCAAIABABAREA/8QAFQABAQAAAAAAAAAAAAAAAAAABgf/2gAIAQEAAAABCWv/xAAUEAEAAAAAAAAAAAAAAAAAAAAQ/9oACAEBAAEFAj//xAAUEAEAAAAAAAAAAAAAAAAAAAAQ/9oACAEBAAY/Aj//xAAUEAEAAAAAAAAAAAAAAAAAAAAQ/9oACAEBAAE/IT//2gAIAQEAAAAQv//EABQQAQAAAAAAAAAAAAAAAAAAABD/2gAIAQEAAT8QP//Z'],
])('decodeImage: %s grey JPEG has one channel', (_, base64) => {
  const { width, height, channels, data } = decodeImage(new Uint8Array(Buffer.from(base64, 'base64')), 'x.jpg');
  expect([width, height, channels, data.length]).toEqual([16, 8, 1, 128]);
  data.forEach((v, p) => expect(Math.abs(v - (p % 16 < 8 ? 40 : 200))).toBeLessThan(8));
});

/** 16x8, the left half one colour and the right another, as JPEG with an optional EXIF orientation. */
function jpeg(left: number[], right: number[], orientation?: number): Uint8Array {
  const data = new Uint8Array(16 * 8 * 4);
  for (let p = 0; p < 128; p++) data.set([...(p % 16 < 8 ? left : right), 255], p * 4);
  const bytes = new Uint8Array(encodeJpeg({ width: 16, height: 8, data }, 95).data);
  if (orientation === undefined) return bytes;
  const tiff = [0x49, 0x49, 42, 0, 8, 0, 0, 0, 1, 0, 0x12, 0x01, 3, 0, 1, 0, 0, 0, orientation, 0, 0, 0, 0, 0, 0, 0];
  const exif = [0x45, 0x78, 0x69, 0x66, 0, 0, ...tiff];
  return Uint8Array.from([0xff, 0xd8, 0xff, 0xe1, 0, exif.length + 2, ...exif, ...bytes.subarray(2)]);
}

test('decodeImage: JPEG colours, and all eight EXIF orientations', () => {
  const raster = decodeImage(jpeg([200, 30, 30], [30, 30, 200]), 'x.jpg');
  expect([raster.width, raster.height, raster.channels]).toEqual([16, 8, 3]);
  [200, 30, 30].forEach((v, c) => expect(Math.abs(raster.data[c]! - v)).toBeLessThan(8));
  // where the dark (originally left) half ends up
  const expected = ['left', 'left', 'right', 'right', 'left', 'top', 'top', 'bottom', 'bottom'];
  for (let orientation = 1; orientation <= 8; orientation++) {
    const { width, height, data } = decodeImage(jpeg([20, 20, 20], [230, 230, 230], orientation), 'x.jpg');
    const dark = (x: number, y: number): boolean => data[(y * width + x) * 3]! < 128;
    const corners = [dark(0, 0), dark(width - 1, 0), dark(0, height - 1), dark(width - 1, height - 1)];
    const side = { left: [true, false, true, false], right: [false, true, false, true], top: [true, true, false, false], bottom: [false, false, true, true] }[expected[orientation]!];
    expect([orientation, [width, height], corners]).toEqual([orientation, orientation >= 5 ? [8, 16] : [16, 8], side]);
  }
});

test('decodeImage: EXIF turns and mirrors are told apart', () => {
  // 3x2 of distinct greys in 8x8 blocks: block (row, column) is 40 * (1 + 3*row + column)
  const data = new Uint8Array(24 * 16 * 4).fill(255);
  for (let p = 0; p < 24 * 16; p++) data.fill(40 * (1 + 3 * Math.floor(p / 24 / 8) + Math.floor((p % 24) / 8)), p * 4, p * 4 + 3);
  const plain = new Uint8Array(encodeJpeg({ width: 24, height: 16, data }, 95).data);
  const expected = [[], [1, 2, 3, 4, 5, 6], [3, 2, 1, 6, 5, 4], [6, 5, 4, 3, 2, 1], [4, 5, 6, 1, 2, 3], [1, 4, 2, 5, 3, 6], [4, 1, 5, 2, 6, 3], [6, 3, 5, 2, 4, 1], [3, 6, 2, 5, 1, 4]];
  for (let orientation = 1; orientation <= 8; orientation++) {
    const exif = jpeg([0, 0, 0], [0, 0, 0], orientation).subarray(2, 2 + 4 + 32);
    const raster = decodeImage(Uint8Array.from([0xff, 0xd8, ...exif, ...plain.subarray(2)]), 'x.jpg');
    const blocks: number[] = [];
    for (let y = 4; y < raster.height; y += 8) for (let x = 4; x < raster.width; x += 8) blocks.push(Math.round(raster.data[(y * raster.width + x) * 3]! / 40));
    expect([orientation, blocks]).toEqual([orientation, expected[orientation]]);
  }
});

test('decodeImage: damaged, foreign and oversized files are errors that name the file', () => {
  const png = encodePng({ width: 8, height: 8, channels: 1, data: new Uint8Array(64) });
  const huge = png.slice();
  new DataView(huge.buffer).setUint32(16, 20_000);
  new DataView(huge.buffer).setUint32(20, 20_000);
  const flipped = png.slice();
  flipped[png.length - 20]! ^= 0xff;
  const hugeJpeg = jpeg([0, 0, 0], [9, 9, 9]);
  const sof = hugeJpeg.findIndex((b, i) => b === 0xff && hugeJpeg[i + 1] === 0xc0);
  hugeJpeg.fill(0xff, sof + 5, sof + 9);
  for (const [bytes, message] of [
    [png.subarray(0, png.length - 20), /a\.png: damaged PNG/],
    [png.subarray(0, 20), /a\.png: damaged PNG/],
    [flipped, /a\.png: damaged PNG/],
    [huge, /a\.png: 20000x20000 pixels are more than the 100 megapixels/],
    [hugeJpeg, /a\.png: 65535x65535 pixels are more/],
    [jpeg([0, 0, 0], [9, 9, 9]).subarray(0, 300), /a\.png: damaged JPEG/],
    [new TextEncoder().encode('GIF89a'), /a\.png: neither a PNG nor a JPEG/],
    [new Uint8Array(0), /a\.png: neither/],
  ] as const) {
    expect(() => decodeImage(bytes, 'a.png')).toThrow(message);
    expect(() => decodeImage(bytes, 'a.png')).toThrow(BruitError);
  }
});

test.each(pictures)('$name: its size is read from its header, and bounded', ({ file, sized }) => {
  expect(imageSize(file)).toMatchObject({ width: 37, height: 19 });
  expect(() => checkImageSize(file, 'a')).not.toThrow();
  expect(imageSize(sized(300, 5000))).toMatchObject({ width: 300, height: 5000 });
  expect(() => checkImageSize(sized(10_000, 10_000), 'a')).not.toThrow();
  expect(() => checkImageSize(sized(10_001, 10_000), 'a.x')).toThrow(/a\.x: 10001x10000 pixels are more than the 100 megapixels/);
  // Cut off or damaged anywhere it is told or not, and nothing else happens.
  for (let length = 0; length < Math.min(file.length, 400); length++) imageSize(file.slice(0, length));
  for (let at = 0; at < Math.min(file.length, 400); at++) for (const flip of [1, 0x7f, 0x80, 0xff]) imageSize(file.map((b, i) => (i === at ? b ^ flip : b)));
});

test('headers that nest or go on without an end take no time', () => {
  const nested = new Uint8Array(2 ** 20);
  const view = new DataView(nested.buffer);
  for (let at = 0; at + 12 <= nested.length; at += 12) {
    view.setUint32(at, nested.length - at);
    nested.set(new TextEncoder().encode(at ? 'meta' : 'ftyp'), at + 4);
  }
  view.setUint32(0, 12);
  expect(imageSize(nested)).toBeUndefined();
  const extensions = new Uint8Array(2 ** 20).fill(0x21);
  extensions.set(new TextEncoder().encode('GIF89a'));
  extensions[10] = 0;
  expect(imageSize(extensions)).toBeUndefined();
});

/** A PNG chunk. */
function chunk(type: string, data: Uint8Array): Uint8Array {
  const out = new Uint8Array(12 + data.length);
  const view = new DataView(out.buffer);
  view.setUint32(0, data.length);
  out.set(new TextEncoder().encode(type), 4);
  out.set(data, 8);
  view.setUint32(8 + data.length, crc32(out.subarray(4, 8 + data.length)));
  return out;
}

test('decodeImage: data and colour profiles that unpack to far more than the image are not unpacked', () => {
  const png = encodePng({ width: 8, height: 8, channels: 1, data: new Uint8Array(64).fill(7) });
  const [header, end] = [png.subarray(0, 33), chunk('IEND', new Uint8Array(0))];
  const join = (...parts: Uint8Array[]): Uint8Array => Uint8Array.from(parts.flatMap((part) => [...part]));
  const bomb = deflateSync(new Uint8Array(300e6), { level: 9 });
  expect(bomb.length).toBeLessThan(400e3);
  const before = process.memoryUsage().rss;
  expect(() => decodeImage(join(header, chunk('IDAT', bomb), end), 'bomb.png')).toThrow(/^bomb\.png: its data unpacks to more than its 8x8 pixels take/);
  const profile = join(header, chunk('iCCP', join(Uint8Array.of(97, 0, 0), bomb)), png.subarray(33));
  // What stands behind the end is not looked at, and the decoder would believe the last of two headers.
  expect(decodeImage(join(profile, new Uint8Array(12).fill(255)), 'profile.png').data).toEqual(new Uint8Array(64).fill(7));
  const second = header.slice(8);
  new DataView(second.buffer).setUint32(8, 60_000);
  expect(() => decodeImage(join(header, second, png.subarray(33)), 'twice.png')).toThrow(/twice\.png: damaged PNG \(it has two IHDR chunks\)/);
  expect(decodeImage(profile, 'profile.png').data).toEqual(new Uint8Array(64).fill(7));
  expect(process.memoryUsage().rss - before).toBeLessThan(150e6);
});

async function tree(name: string, files: Record<string, Uint8Array>): Promise<string> {
  for (const [path, bytes] of Object.entries(files)) {
    await mkdir(join(folder, name, path, '..'), { recursive: true });
    await writeFile(join(folder, name, path), bytes);
  }
  return join(folder, name);
}
const grey = (width: number, height: number, at: (x: number, y: number) => number): Uint8Array => encodePng({ width, height, channels: 1, data: Uint8Array.from({ length: width * height }, (_, p) => at(p % width, Math.floor(p / width))) });

test('loadImageFolder: sorted classes, PNG and JPEG, nested and hidden files, resize and centre crop', async () => {
  const root = await tree('classes', {
    'zebra/1.png': grey(4, 4, () => 255),
    'ant/b.JPG': jpeg([200, 30, 30], [200, 30, 30]),
    'ant/deep/a.png': grey(8, 4, (x) => (x < 2 || x >= 6 ? 0 : 255)),
    'ant/notes.txt': new Uint8Array(3),
    'ant/.hidden.png': new Uint8Array(3),
    '.git/x.png': new Uint8Array(3),
  });
  const rgb = await loadImageFolder(root, { size: 2 });
  expect([rgb.length, rgb.classes, rgb.shape]).toEqual([3, ['ant', 'zebra'], [3, 2, 2]]);
  const items = await Promise.all([0, 1, 2].map((i) => rgb.get(i)));
  expect(items.map((i) => i.label)).toEqual([0, 0, 1]);
  expect(items[0]!.image[0]).toBeCloseTo(200 / 127.5 - 1, 1); // the red JPEG, red plane first
  expect(items[0]!.image[4]).toBeCloseTo(30 / 127.5 - 1, 1);
  expect(Array.from(items[1]!.image)).toEqual(new Array(12).fill(1)); // the dark sides are cropped off
  const one = await loadImageFolder(root, { size: [1, 1], channels: 1, cacheBytes: 0 });
  expect((await one.get(0)).image[0]).toBeCloseTo((0.299 * 200 + 0.701 * 30) / 127.5 - 1, 1);
  expect((await one.get(1)).image).toEqual((await one.get(1)).image);
});

test('loadImageFolder: a folder without classes, and what is wrong with a folder', async () => {
  const flat = await loadImageFolder(await tree('flat', { 'a.png': grey(2, 2, () => 0), 'b.png': grey(3, 2, () => 255) }), { size: 2, channels: 1 });
  expect([flat.length, flat.classes, (await flat.get(1)).label]).toEqual([2, undefined, 0]);
  await expect(loadImageFolder(join(folder, 'nowhere'), { size: 2 })).rejects.toThrow(/cannot read .*nowhere: there is no such file or folder/);
  await expect(loadImageFolder(await tree('empty', { 'readme.txt': new Uint8Array(1) }), { size: 2 })).rejects.toThrow(/has no PNG or JPEG files/);
  await expect(loadImageFolder(await tree('hollow', { 'a/1.png': grey(1, 1, () => 0), 'b/readme.txt': new Uint8Array(1) }), { size: 2 })).rejects.toThrow(/hollow\/b: this class folder has no/);
  await expect(loadImageFolder(await tree('mixed', { 'a/1.png': grey(1, 1, () => 0), 'loose.png': grey(1, 1, () => 0) }), { size: 2 })).rejects.toThrow(/side by side/);
  const broken = await loadImageFolder(await tree('broken', { 'a/1.png': grey(9, 9, () => 0).subarray(0, 40) }), { size: 2 });
  await expect(broken.get(0)).rejects.toThrow(/broken\/a\/1\.png: damaged PNG/);
  await expect(loadImageFolder(folder, { size: 0 })).rejects.toThrow(/image size 0x0/);
});

test('writePngFolder numbers files on, and overwrites only when told to', async () => {
  const target = join(folder, 'out');
  const images = { data: Float32Array.from({ length: 8 }, (_, i) => i / 8), shape: [2, 1, 2, 2] as const };
  await writePngFolder(target, images);
  await writePngFolder(target, images, { start: 2, text: (i) => ({ seed: String(i) }) });
  expect((await readdir(target)).sort()).toEqual(['00000.png', '00001.png', '00002.png', '00003.png']);
  await expect(writePngFolder(target, images, { start: 3 })).rejects.toThrow(/00003\.png exists already; nothing was written/);
  expect((await readdir(target)).length).toBe(4);
  await writePngFolder(target, images, { start: 3, overwrite: true });
  const again = await loadImageFolder(target, { size: 2, channels: 1 });
  expect(again.length).toBe(5);
  expect((await again.get(4)).image[3]).toBeCloseTo(toByte(7 / 8) / 127.5 - 1, 6);
});
