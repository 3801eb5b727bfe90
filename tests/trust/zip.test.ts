/** Zips that the page reads: what lies about its size, is too large, damaged or ambiguous is refused in words, within bounded memory and time. */
import { crc32, deflateRawSync } from 'node:zlib';
import { strFromU8, strToU8, zipSync } from 'fflate';
import { expect, test } from 'vitest';
import { BruitError } from '../../src/engine/errors';
import { readZip } from '../../web/worker/zip';

const MiB = 2 ** 20;
const noise = (length: number): Uint8Array => Uint8Array.from({ length }, (_, i) => Math.imul(i + 1, 2654435761) >>> 24);
const bounds = { bytes: 64 * MiB };

interface Entry {
  readonly name: string;
  readonly data: Uint8Array;
  /** Deflated; stored by default. */
  readonly deflate?: boolean;
  /** With a descriptor behind its data, and no sizes before. */
  readonly streamed?: boolean;
  /** Sizes as the entry's own header and the directory give them, [packed, unpacked]; the true ones by default. */
  readonly local?: readonly [number, number];
  readonly central?: readonly [number, number];
}

/** Half a gigabyte that deflates to half a megabyte. */
const nothing = new Uint8Array(512 * MiB);
const packedNothing = deflateRawSync(nothing);

/** A zip written by hand, so that it may lie. */
function zipOf(entries: readonly Entry[], { hidden = [] as readonly Entry[] } = {}): Uint8Array {
  const parts: Buffer[] = [];
  const directory: Buffer[] = [];
  let at = 0;
  for (const [i, entry] of [...entries, ...hidden].entries()) {
    const name = Buffer.from(entry.name);
    const packed = entry.data === nothing ? packedNothing : entry.deflate ? deflateRawSync(entry.data) : Buffer.from(entry.data);
    const fields = ([size, original]: readonly [number, number]): Buffer => {
      const b = Buffer.alloc(22);
      b.writeUInt16LE(20, 0);
      b.writeUInt16LE(entry.streamed ? 8 : 0, 2);
      b.writeUInt16LE(entry.deflate ? 8 : 0, 4);
      b.writeUInt32LE(entry.data === nothing ? 0 : crc32(entry.data), 10);
      b.writeUInt32LE(size, 14);
      b.writeUInt32LE(original, 18);
      return b;
    };
    const own = [packed.length, entry.data.length] as const;
    const lengths = Buffer.from([name.length & 255, name.length >> 8, 0, 0]);
    const offset = Buffer.alloc(14);
    offset.writeUInt32LE(at, 10);
    const descriptor = entry.streamed ? Buffer.concat([Buffer.from('PK\x07\x08'), fields(entry.local ?? own).subarray(10)]) : Buffer.alloc(0);
    const local = Buffer.concat([Buffer.from('PK\x03\x04'), fields(entry.streamed ? [0, 0] : (entry.local ?? own)), lengths, name, packed, descriptor]);
    parts.push(local);
    at += local.length;
    if (i < entries.length) directory.push(Buffer.concat([Buffer.from('PK\x01\x02\x14\x00'), fields(entry.central ?? own), lengths, offset, name]));
  }
  const end = Buffer.alloc(22);
  end.write('PK\x05\x06', 'latin1');
  end.writeUInt16LE(directory.length, 8);
  end.writeUInt16LE(directory.length, 10);
  end.writeUInt32LE(directory.reduce((n, b) => n + b.length, 0), 12);
  end.writeUInt32LE(at, 16);
  return new Uint8Array(Buffer.concat([...parts, ...directory, end]));
}

const zeros = (megabytes: number): Uint8Array => new Uint8Array(megabytes * MiB);
const text = (s: string): Uint8Array => strToU8(s);

test('zips of every honest kind are read', async () => {
  const files = { 'a.json': text('{}'), 'unet/weights.bin': noise(300_000), empty: new Uint8Array(0), 'sparse.bin': new Uint8Array(300_000) };
  const expected = new Map(Object.entries(files).map(([name, data]) => [name, Buffer.from(data).toString('latin1')]));
  const read = (zip: Uint8Array) => new Map([...readZip(zip, 'x', bounds)].map(([name, data]) => [name, Buffer.from(data).toString('latin1')]));
  for (const level of [0, 1, 9] as const) expect(read(zipSync(files, { level }))).toEqual(expected);
  // As written by a stream, whose sizes follow the data.
  expect(read(zipOf(Object.entries(files).map(([name, data], i) => ({ name, data, deflate: i % 2 === 0, streamed: true }))))).toEqual(expected);
  expect(read(zipOf(Object.entries(files).map(([name, data], i) => ({ name, data, deflate: i % 2 === 1, streamed: true }))))).toEqual(expected);
  expect(readZip(zipOf([{ name: 'a', data: text('a'), deflate: true }, { name: 'folder/', data: new Uint8Array(0) }]), 'x', bounds)).toEqual(new Map([['a', text('a')]]));
  // Sizes in zip64 fields, by Python's zipfile.
  const zip64 = Buffer.from('UEsDBC0AAAAIAAAAIQAv+vhI//////////8FABQAYS50eHQBABAAeAAAAAAAAAALAAAAAAAAAMtIzcnJV8igOwkAUEsBAi0DLQAAAAgAAAAhAC/6+EgLAAAAeAAAAAUAAAAAAAAAAAAAAIABAAAAAGEudHh0UEsFBgAAAAABAAEAMwAAAEIAAAAAAA==', 'base64');
  expect(strFromU8(readZip(new Uint8Array(zip64), 'x', bounds).get('a.txt')!)).toBe('hello '.repeat(20));
});

const bomb = (change: Partial<Entry>): Entry => ({ name: 'a', data: nothing, deflate: true, ...change });
const packedSize = packedNothing.length;

test.each<[string, () => Uint8Array, RegExp]>([
  ['one that declares little and unpacks to 512 MiB', () => zipOf([bomb({ local: [packedSize, 10], central: [packedSize, 10] })]), /"a" unpacks to more than the 10 bytes that it declares/],
  ['one whose directory alone lies', () => zipOf([bomb({ central: [packedSize, 10] })]), /"a" unpacks to more than the 10 bytes/],
  ['one that is open about it', () => zipOf([bomb({})]), /unpacks to more than the 67108864 bytes that are read/],
  ['many entries that are small by themselves', () => zipOf(Array.from({ length: 40 }, (_, i) => ({ name: `${i}`, data: zeros(2), deflate: true }))), /unpacks to more than/],
  ['sizes that no deflate reaches', () => zipOf([{ name: 'a', data: text('tiny'), deflate: true, central: [6, 60 * MiB] }]), /cannot unpack to 62914560 bytes from 6/],
  ['sizes of 4 GiB', () => zipOf([{ name: 'a', data: text('tiny'), central: [2 ** 32 - 2, 2 ** 32 - 2] }]), /unpacks to more than/],
  ['a stored file that is said to be longer', () => zipOf([{ name: 'a', data: text('tiny'), local: [1000, 1000], central: [1000, 1000] }]), /x: /],
  ['a stream that declares little and unpacks to 512 MiB', () => zipOf([bomb({ streamed: true, central: [packedSize, 10] })]), /"a" unpacks to more than the 10 bytes/],
  ['a file that ends early', () => zipOf([{ name: 'a', data: text('tiny'), deflate: true, central: [6, 9] }]), /"a" ends after 4 of 9 bytes/],
  ['more files than there may be', () => zipOf(Array.from({ length: 65 }, (_, i) => ({ name: `${i}`, data: text('') }))), /more than 64 files/],
  ['20,000 files that the directory does not name', () => zipOf([{ name: 'a', data: text('a') }], { hidden: Array.from({ length: 20_000 }, (_, i) => ({ name: `h${i}`, data: text('') })) }), /"h0" is not in its directory/],
  ['a file twice', () => zipOf([{ name: 'a', data: text('1') }, { name: 'a', data: text('2') }]), /two files called "a"/],
  ['a file twice, of which the directory names one', () => zipOf([{ name: 'a', data: text('1') }], { hidden: [{ name: 'a', data: text('2') }] }), /"a" is not in its directory/],
  ...['../a', 'x/../../a', '/etc/passwd', 'C:\\a', 'a\\..\\b', 'https://elsewhere.test/a'].map((name): [string, () => Uint8Array, RegExp] => [`the path ${name}`, () => zipOf([{ name, data: text('a') }]), /is no path within the folder/]),
  ['more bytes than are read', () => new Uint8Array(65 * MiB), /its 68157440 bytes are more than/],
  ['no zip', () => text('no zip at all, and long enough to have a directory'), /a damaged zip/],
  ['nothing', () => new Uint8Array(0), /a damaged zip/],
])('refused: %s', (_, make, words) => {
  const zip = make();
  const before = process.memoryUsage();
  const start = performance.now();
  let error: unknown;
  try {
    readZip(zip, 'x', bounds);
  } catch (e) {
    error = e;
  }
  expect(error).toBeInstanceOf(BruitError);
  expect((error as BruitError).message).toMatch(words);
  expect((error as BruitError).message).toMatch(/^x: /);
  const after = process.memoryUsage();
  // What is read at most, and room for the decoder; far below the half gigabyte of the bombs.
  expect(after.arrayBuffers - before.arrayBuffers).toBeLessThan(bounds.bytes + 32 * MiB);
  expect(after.heapUsed - before.heapUsed).toBeLessThan(64 * MiB);
  expect(performance.now() - start).toBeLessThan(5000);
});

test('the same names as every object has', () => {
  const files = readZip(zipOf([{ name: '__proto__', data: text('{"polluted":1}') }, { name: 'constructor', data: text('x') }]), 'x', bounds);
  expect([...files.keys()]).toEqual(['__proto__', 'constructor']);
  expect(({} as { polluted?: unknown }).polluted).toBeUndefined();
});

test('a changed byte of stored weights is an error that names the file', () => {
  const zip = zipSync({ 'trainer_state.json': text('{"step": 10}'), 'unet/weights.safetensors': noise(100_000) }, { level: 0 });
  for (const at of [1000, 50_000, 99_999]) {
    expect(() => readZip(zip.map((b, i) => (i === at ? b ^ 4 : b)), 'x', bounds)).toThrow(/^x: "unet\/weights\.safetensors" is not what it was when the zip was made: its checksum/);
  }
});

test('cut off anywhere, or with any byte changed: the right files, or words', () => {
  const files = { 'a.json': text('{"a": [1, 2, 3]}'), 'b/c.bin': noise(500), d: text('d'.repeat(500)) };
  for (const level of [0, 6] as const) {
    const zip = zipSync(files, { level });
    const tried = (bytes: Uint8Array): Map<string, Uint8Array> | undefined => {
      try {
        return readZip(bytes, 'x', bounds);
      } catch (error) {
        if (!(error instanceof BruitError)) throw error;
        return undefined;
      }
    };
    for (let length = 0; length < zip.length; length++) expect(tried(zip.subarray(0, length))).toBeUndefined();
    for (let at = 0; at < zip.length; at++) {
      for (const flip of [1, 0x80, 0xff]) {
        const read = tried(zip.map((b, i) => (i === at ? b ^ flip : b)));
        // What a checksum does not cover are names and dates.
        if (read) expect([...read.values()].map((data) => Buffer.from(data).toString('hex'))).toEqual(Object.values(files).map((data) => Buffer.from(data).toString('hex')));
      }
    }
  }
});
