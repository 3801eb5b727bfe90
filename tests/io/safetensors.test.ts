import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { BruitError } from '../../src/engine/errors';
import { f16ToF32 } from '../../src/io/half';
import { openSafetensors, openSharded, safetensorsChunks, writeSafetensors, type SafetensorsDtype, type TensorData, type TensorToWrite } from '../../src/io/safetensors';
import { bytesSource, type ByteSource } from '../../src/io/source';
import { fileOf, golden, messageOf, openBytes } from './helpers';

const entry = (dtype: string, shape: number[], begin: number, end: number): string => `{"dtype":"${dtype}","shape":[${shape}],"data_offsets":[${begin},${end}]}`;

describe('malformed files are refused with a precise error', () => {
  const huge = new Uint8Array(16);
  new DataView(huge.buffer).setBigUint64(0, 100_000_001n, true);
  const text = (s: string): Uint8Array => new TextEncoder().encode(s.padEnd(64, '\0'));
  const cases: [what: string, file: Uint8Array, message: RegExp][] = [
    ['an empty file', new Uint8Array(0), /truncated: 0 bytes/],
    ['7 bytes', new Uint8Array(7), /truncated: 7 bytes.*takes 8/],
    ['a header beyond the end', fileOf('{}').subarray(0, 9), /truncated: the header takes 2 bytes after the first 8, but the file has only 9/],
    ['a header over 100 MB', huge, /header length 100000001 is over the limit of 100000000/],
    ['a header of 2^64 - 1', new Uint8Array(16).fill(255), /header length 18446744073709551615 is over/],
    ['an empty header', fileOf(''), /must begin with "\{", and is empty/],
    ['leading space', fileOf(' {}'), /must begin with "\{", and begins with byte 0x20/],
    ['an array', fileOf('[]'), /must begin with "\{", and begins with byte 0x5b/],
    ['a byte order mark', fileOf('\ufeff{}'), /begins with byte 0xef/],
    ['non-UTF-8', fileOf(new Uint8Array([0x7b, 0x22, 0xff, 0x22, 0x7d])), /header \(5 bytes\) is not valid UTF-8/],
    ['overlong UTF-8', fileOf(new Uint8Array([0x7b, 0x22, 0xc0, 0xa2, 0x22, 0x7d])), /not valid UTF-8/],
    ['non-JSON', fileOf('{"a":'), /header is malformed JSON: /],
    ['NUL padding', fileOf('{}\0\0'), /malformed JSON/],
    ['NaN', fileOf('{"a":NaN}'), /malformed JSON/],
    ['a duplicate tensor', fileOf(`{"a":${entry('U8', [1], 0, 1)},"a":${entry('U8', [1], 0, 1)}}`, 1), /the key "a" is given twice \(again at character 53\)/],
    ['a duplicate spelt with an escape', fileOf(`{"a/b":${entry('U8', [1], 0, 1)},"\\u0061\\/b" :${entry('U8', [1], 0, 1)}}`, 1), /the key "a\/b" is given twice/],
    ['a duplicate inside an entry', fileOf('{"w":{"dtype":"U8","shape":[1],"dtype":"I8","data_offsets":[0,1]}}', 1), /the key "dtype" is given twice in "w"/],
    ['a duplicate in the metadata', fileOf('{"__metadata__":{"k":"1","k":"1"}}'), /"k" is given twice in "__metadata__"/],
    ['two metadata', fileOf('{"__metadata__":{},"__metadata__":{}}'), /"__metadata__" is given twice/],
    ['metadata that is no object', fileOf('{"__metadata__":["a"]}'), /__metadata__ must be an object of strings, and is \["a"\]/],
    ['null metadata', fileOf('{"__metadata__":null}'), /__metadata__ must be an object of strings, and is null/],
    ['non-string metadata', fileOf('{"__metadata__":{"step":3}}'), /__metadata__ entry "step" must be a string, and is 3/],
    ['an entry that is no object', fileOf('{"a":[1,2]}'), /tensor "a": its entry must be an object.*is \[1,2\]/],
    ['an entry nested past the stack', fileOf(`{"a":${'['.repeat(200_000)}${']'.repeat(200_000)}}`), /tensor "a": its entry must be an object.*(nested too deeply|\[\[\[)/],
    ['no dtype', fileOf('{"a":{"shape":[1],"data_offsets":[0,1]}}', 1), /tensor "a": no dtype; known are U64/],
    ['an unknown dtype', fileOf(`{"a":${entry('F8_E4M3', [1], 0, 1)}}`, 1), /tensor "a": unknown dtype "F8_E4M3"; known are .*BF16/],
    ['an inherited property as dtype', fileOf(`{"a":${entry('toString', [1], 0, 1)}}`, 1), /unknown dtype "toString"/],
    ['a dtype that is no string', fileOf('{"a":{"dtype":["U8"],"shape":[1],"data_offsets":[0,1]}}', 1), /unknown dtype \["U8"\]/],
    ['no shape', fileOf('{"a":{"dtype":"U8","data_offsets":[0,1]}}', 1), /tensor "a": shape must be a list.*and is missing/],
    ['a negative dimension', fileOf(`{"a":${entry('U8', [-1], 0, 1)}}`, 1), /shape must be .* is \[-1\]/],
    ['two negative dimensions', fileOf(`{"a":${entry('U8', [-2, -2], 0, 4)}}`, 4), /shape must be .* is \[-2,-2\]/],
    ['a fractional dimension', fileOf(`{"a":${entry('U8', [1.5, 2], 0, 3)}}`, 3), /shape must be .* is \[1.5,2\]/],
    ['a dimension in a string', fileOf('{"a":{"dtype":"U8","shape":["1"],"data_offsets":[0,1]}}', 1), /shape must be .* is \["1"\]/],
    ['a dimension beyond 2^53', fileOf('{"a":{"dtype":"U8","shape":[9007199254740993],"data_offsets":[0,1]}}', 1), /shape must be/],
    ['a product beyond 2^53', fileOf(`{"a":${entry('F32', [2 ** 30, 2 ** 30], 0, 4)}}`, 4), /F32 \[1073741824,1073741824\] has more than 2\^53/],
    ['a product that wraps to 0', fileOf(`{"a":${entry('U8', [2 ** 32, 2 ** 32], 0, 0)}}`), /has more than 2\^53/],
    ['an overflow hidden by a later 0', fileOf(`{"a":${entry('U8', [2 ** 52, 2 ** 52, 0], 0, 0)}}`), /has more than 2\^53/],
    ['a shape larger than its bytes', fileOf(`{"a":${entry('F16', [2, 3], 0, 8)}}`, 8), /tensor "a": F16 \[2,3\] takes 12 bytes, but data_offsets \[0,8\] hold 8/],
    ['a scalar without bytes', fileOf(`{"a":${entry('F64', [], 0, 0)}}`), /F64 \[\] takes 8 bytes.* hold 0/],
    ['offsets of three numbers', fileOf('{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1,1]}}', 1), /data_offsets must be two whole numbers.* is \[0,1,1\]/],
    ['negative offsets', fileOf(`{"a":${entry('U8', [1], -1, 0)}}`, 1), /data_offsets must be two whole numbers/],
    ['offsets that run backwards', fileOf(`{"a":${entry('U8', [1], 1, 0)}}`, 1), /\[1,0\] end before they begin/],
    ['offsets beyond the end', fileOf(`{"a":${entry('F32', [4], 0, 16)}}`, 12), /tensor "a": data_offsets \[0,16\] reach beyond the 12 data bytes.*truncated/],
    ['a tensor past the end', fileOf(`{"a":${entry('U8', [1], 99, 100)}}`, 1), /reach beyond the 1 data bytes/],
    ['overlapping tensors', fileOf(`{"a":${entry('U8', [6], 0, 6)},"b":${entry('U8', [4], 4, 8)}}`, 8), /tensor "b" at data bytes 4 to 8 overlaps tensor "a", which ends at 6/],
    ['the same bytes twice', fileOf(`{"a":${entry('U8', [4], 0, 4)},"b":${entry('I8', [4], 0, 4)}}`, 4), /overlaps/],
    ['an empty tensor inside another', fileOf(`{"a":${entry('U8', [4], 0, 4)},"b":${entry('I8', [0], 2, 2)}}`, 4), /tensor "b" .* overlaps tensor "a"/],
    ['a hole', fileOf(`{"a":${entry('U8', [2], 0, 2)},"b":${entry('U8', [2], 4, 6)}}`, 6), /data bytes 2 to 4, before tensor "b", belong to no tensor/],
    ['a hole at the start', fileOf(`{"a":${entry('U8', [2], 1, 3)}}`, 3), /data bytes 0 to 1, before tensor "a", belong to no tensor/],
    ['bytes after the last tensor', fileOf(`{"a":${entry('U8', [2], 0, 2)}}`, 5), /the last tensor, "a", ends at data byte 2, but the file goes on for 3 bytes/],
    ['bytes without tensors', fileOf('{}', 5), /there are no tensors, but the file goes on for 5 bytes/],
    ['half a surrogate pair', fileOf(`{"\\ud800":${entry('U8', [1], 0, 1)}}`, 1), /half of a surrogate pair/],
    ['a PyTorch checkpoint', text('PK\x03\x04archive/data.pkl'), /PyTorch checkpoint/],
    ['a Git LFS pointer', text('version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1'), /Git LFS pointer/],
    ['a web page', text('<!DOCTYPE html><html>'), /web page/],
    ['a GGUF file', text('GGUF\x03\0\0\0'), /GGUF/],
    ['an index', text('{"metadata":{"total_size":1},"weight_map":{}}'), /looks like JSON.*index/],
  ];
  test.each(cases)('%s', async (_, file, message) => {
    const told = await messageOf('safetensors', openBytes(file, 'bad.safetensors'));
    expect(told).toMatch(/^bad\.safetensors: /);
    expect(told).toMatch(message);
    expect(told.length).toBeLessThan(400);
  });

  test('a long name or shape does not make a long message', async () => {
    const name = 'n'.repeat(1_000_000);
    for (const header of [`{"${name}":1}`, `{"${name}":1,"${name}":1}`]) expect((await messageOf('safetensors', openBytes(fileOf(header)))).length).toBeLessThan(500);
    const told = await messageOf('safetensors', openBytes(fileOf(`{"a":${entry('U8', new Array<number>(50_000).fill(1), 0, 2)}}`, 2)));
    expect(told).toMatch(/takes 1 bytes, but data_offsets \[0,2\] hold 2/);
    expect(told.length).toBeLessThan(400);
  });

  test('nothing but the header is read, and a lying header length asks for nothing', async () => {
    const reads: [number, number][] = [];
    const spy = (size: number, bytes: Uint8Array): ByteSource => ({
      name: 'spy',
      size,
      read: async (offset, length) => {
        reads.push([offset, length]);
        return bytes.slice(offset, offset + length);
      },
    });
    const good = writeSafetensors([{ name: 'w', dtype: 'F32', shape: [1000], data: new Float32Array(1000) }]);
    await openSafetensors(spy(good.length, good));
    const headerEnd = good.length - 4000;
    expect(reads.every(([offset, length]) => offset + length <= headerEnd)).toBe(true);
    reads.length = 0;
    const lying = new Uint8Array(16);
    new DataView(lying.buffer).setBigUint64(0, 99_999_999n, true);
    await messageOf('safetensors', openSafetensors(spy(1000, lying)));
    expect(reads).toEqual([[0, 16]]);
  });
});

describe('well-formed files', () => {
  test('no tensors; trailing spaces; any order; empty tensors; unknown fields of an entry', async () => {
    expect((await openBytes(fileOf('{}      '))).tensors.size).toBe(0);
    const store = await openBytes(fileOf(`{"b":${entry('U8', [2], 1, 3)},"e":${entry('F32', [0, 7], 1, 1)},"a":{"dtype":"I8","shape":[],"data_offsets":[0,1],"note":1.5}}`, Uint8Array.of(255, 7, 8)));
    expect([...store.tensors.keys()]).toEqual(['a', 'e', 'b']);
    expect([...(await store.readF32('a'))]).toEqual([-1]);
    expect([...(await store.readF32('b'))]).toEqual([7, 8]);
    expect((await store.readF32('e')).length).toBe(0);
    expect(store.tensors.get('b')).toMatchObject({ name: 'b', dtype: 'U8', shape: [2], file: 'x.safetensors', byteLength: 2 });
  });

  test('names that are special in JavaScript are names', async () => {
    const names = ['__proto__', 'constructor', 'toString', '', '0', 'ключ', '\u0000\n"\\', '😀'];
    const metadata = JSON.parse('{"__proto__":"p","constructor":"c","format":"pt"}') as Record<string, string>;
    const store = await openBytes(writeSafetensors(names.map((name, i) => ({ name, dtype: 'U8' as const, shape: [1], data: Uint8Array.of(i) })), metadata));
    expect(store.tensors.size).toBe(names.length);
    for (const [i, name] of names.entries()) expect([...(await store.readRaw(name))]).toEqual([i]);
    expect(Object.entries(store.metadata)).toEqual([['__proto__', 'p'], ['constructor', 'c'], ['format', 'pt']]);
    expect((Object.prototype as Record<string, unknown>).p).toBeUndefined();
    expect((await openBytes(fileOf('{}'))).metadata.toString).toBeUndefined();
  });

  test('an unknown tensor is named', async () => {
    expect(await messageOf('safetensors', (await openBytes(fileOf('{}'))).readF32('conv_in.weight'))).toBe('x.safetensors: there is no tensor "conv_in.weight" among its 0');
  });

  test('every dtype becomes float32', async () => {
    const rows: [SafetensorsDtype, TensorData, number[]][] = [
      ['F64', Float64Array.of(0.1, -1e300), [Math.fround(0.1), -Infinity]],
      ['F32', Float32Array.of(0.1, NaN), [Math.fround(0.1), NaN]],
      ['F16', Uint16Array.of(0x3c00, 0x8001), [1, -(2 ** -24)]],
      ['BF16', Uint16Array.of(0x3f80, 0xc040), [1, -3]],
      ['I64', BigInt64Array.of(-5n, 2n ** 40n), [-5, 2 ** 40]],
      ['U64', BigUint64Array.of(5n, 2n ** 63n), [5, 2 ** 63]],
      ['I32', Int32Array.of(-7, 8), [-7, 8]],
      ['U32', Uint32Array.of(7, 2 ** 31), [7, 2 ** 31]],
      ['I16', Int16Array.of(-7, 8), [-7, 8]],
      ['U16', Uint16Array.of(7, 65535), [7, 65535]],
      ['I8', Int8Array.of(-7, 8), [-7, 8]],
      ['U8', Uint8Array.of(7, 255), [7, 255]],
      ['BOOL', Uint8Array.of(0, 255), [0, 1]],
    ];
    const store = await openBytes(writeSafetensors(rows.map(([dtype, data]) => ({ name: dtype, dtype, shape: [2], data }))));
    for (const [dtype, , wanted] of rows) expect([dtype, ...(await store.readF32(dtype))]).toEqual([dtype, ...wanted]);
    for (const dtype of ['I32', 'I16', 'U16', 'I8', 'U8', 'BOOL']) expect([...(await store.readI32(dtype))]).toEqual(rows.find((r) => r[0] === dtype)![2]);
    expect(await messageOf('safetensors', store.readI32('F16'))).toMatch(/tensor "F16" \(F16 \[2\]\) holds floats where integers are wanted/);
    expect(await messageOf('safetensors', store.readI32('I64'))).toMatch(/element 1 is 1099511627776, outside the range of int32/);
    expect(await messageOf('safetensors', store.readI32('U32'))).toMatch(/element 1 is 2147483648/);
  });

  test('data that are not aligned to their element size', async () => {
    const data = new Uint8Array(9);
    new DataView(data.buffer).setFloat64(1, Math.PI, true);
    const file = fileOf(`{"pad":${entry('U8', [1], 0, 1)},"x":${entry('F64', [1], 1, 9)}}`, data);
    // The whole file at an odd address too, and a source that hands out views of it.
    const shifted = new Uint8Array(file.length + 1).subarray(1);
    shifted.set(file);
    const store = await openSafetensors({ name: 'v', size: shifted.length, read: async (offset, length) => shifted.subarray(offset, offset + length) });
    expect([...(await store.readF32('x'))]).toEqual([Math.fround(Math.PI)]);
  });
});

describe('golden files', () => {
  test('half_weights: F16 and BF16 as float32', async () => {
    const io = await openBytes(golden('half_weights/io.safetensors'));
    for (const half of ['fp16', 'bf16']) {
      const store = await openBytes(golden(`half_weights/diffusion_pytorch_model.${half}.safetensors`));
      expect(store.tensors.size).toBe(144);
      expect(store.metadata.format).toBe('pt');
      expect(store.tensors.get('conv_in.weight')!.shape).toEqual([8, 3, 3, 3]);
      expect(await store.readF32('conv_in.weight')).toEqual(await io.readF32(`conv_in_${half}_as_float32`));
    }
    expect((await io.readI32('timestep')).length).toBe(1);
  });

  test.each(['half_weights/io', 'half_weights/diffusion_pytorch_model.bf16', 'half_weights/diffusion_pytorch_model.fp16', 'unet2d_old_names/diffusion_pytorch_model', 'unet2d_old_names/io'])(
    '%s: writing its tensors again gives the same bytes',
    async (path) => {
      const bytes = golden(`${path}.safetensors`);
      const store = await openBytes(bytes);
      const tensors: TensorToWrite[] = [];
      for (const { name, dtype, shape } of store.tensors.values()) tensors.push({ name, dtype, shape, data: await store.readRaw(name) });
      // The order given must not matter.
      expect(Buffer.compare(writeSafetensors(tensors.reverse(), store.metadata), bytes)).toBe(0);
    },
  );
});

describe('writer', () => {
  test('the bytes, decoded by hand', () => {
    const file = writeSafetensors(
      [
        { name: 'a', dtype: 'U8', shape: [3], data: Uint8Array.of(1, 2, 3) },
        { name: 'z', dtype: 'F32', shape: [1, 2], data: Float32Array.of(1, -2) },
        { name: 'half', dtype: 'F16', shape: [2], data: Float32Array.of(1, 1 + 2 ** -11) },
        { name: 'b', dtype: 'F32', shape: [], data: Float32Array.of(0.5) },
        { name: 'brain', dtype: 'BF16', shape: [1], data: Float32Array.of(1 + 3 * 2 ** -8) },
        { name: 'ids', dtype: 'I64', shape: [2], data: Int32Array.of(-1, 5) },
      ],
      { format: 'pt' },
    );
    const view = new DataView(file.buffer);
    const n = Number(view.getBigUint64(0, true));
    expect(n % 8).toBe(0);
    const json = new TextDecoder().decode(file.subarray(8, 8 + n));
    expect(json.trimEnd()).toBe(
      '{"__metadata__":{"format":"pt"},' +
        '"ids":{"dtype":"I64","shape":[2],"data_offsets":[0,16]},' +
        '"b":{"dtype":"F32","shape":[],"data_offsets":[16,20]},' +
        '"z":{"dtype":"F32","shape":[1,2],"data_offsets":[20,28]},' +
        '"brain":{"dtype":"BF16","shape":[1],"data_offsets":[28,30]},' +
        '"half":{"dtype":"F16","shape":[2],"data_offsets":[30,34]},' +
        '"a":{"dtype":"U8","shape":[3],"data_offsets":[34,37]}}',
    );
    expect(json.length - json.trimEnd().length).toBeLessThan(8);
    const at = 8 + n;
    expect(file.length).toBe(at + 37);
    expect(view.getBigInt64(at, true)).toBe(-1n);
    expect(view.getBigInt64(at + 8, true)).toBe(5n);
    expect(view.getFloat32(at + 16, true)).toBe(0.5);
    expect(view.getFloat32(at + 24, true)).toBe(-2);
    expect(view.getUint16(at + 28, true)).toBe(0x3f82); // the tie 1 + 3/256 goes to the even neighbour
    expect(view.getUint16(at + 32, true)).toBe(0x3c00); // and so does 1 + 1/2048
    expect([...file.subarray(at + 34)]).toEqual([1, 2, 3]);
  });

  test('an empty file is the one that the Python library writes', () => {
    expect([...writeSafetensors([])]).toEqual([8, 0, 0, 0, 0, 0, 0, 0, 0x7b, 0x7d, 32, 32, 32, 32, 32, 32]);
  });

  test('names are ordered by code point', async () => {
    const names = ['\u{1f600}', '\uffee', 'b', 'a.10', 'a.2', 'B'];
    const store = await openBytes(writeSafetensors(names.map((name) => ({ name, dtype: 'BOOL' as const, shape: [1], data: new Uint8Array(1) }))));
    expect([...store.tensors.keys()]).toEqual(['B', 'a.10', 'a.2', 'b', '\uffee', '\u{1f600}']);
  });

  test('a view into a larger buffer writes only itself', async () => {
    const store = await openBytes(writeSafetensors([{ name: 'v', dtype: 'F32', shape: [2], data: Float32Array.of(9, 1, 2, 9).subarray(1, 3) }]));
    expect([...(await store.readF32('v'))]).toEqual([1, 2]);
  });

  test('in pieces, with data made on demand, one at a time', async () => {
    const asked: string[] = [];
    const lazy = (name: string, data: TensorData) => ({ name, dtype: 'F32' as const, shape: [2], data: async () => (asked.push(name), data) });
    const chunks: Uint8Array[] = [];
    for await (const chunk of safetensorsChunks([lazy('b', Float32Array.of(3, 4)), lazy('a', Float32Array.of(1, 2))])) {
      expect(asked.length).toBe(chunks.length);
      chunks.push(chunk);
    }
    expect(asked).toEqual(['a', 'b']);
    expect(Buffer.concat(chunks)).toEqual(
      Buffer.from(writeSafetensors([{ name: 'a', dtype: 'F32', shape: [2], data: Float32Array.of(1, 2) }, { name: 'b', dtype: 'F32', shape: [2], data: Float32Array.of(3, 4) }])),
    );
  });

  const one = (part: Partial<TensorToWrite>): TensorToWrite => ({ name: 'w', dtype: 'F32', shape: [2], data: new Float32Array(2), ...part });
  test.each<[string, TensorToWrite[], Record<string, string> | undefined, RegExp]>([
    ['two of a name', [one({}), one({ dtype: 'U8', data: new Uint8Array(2) })], undefined, /tensor "w": there are two of that name/],
    ['the reserved name', [one({ name: '__metadata__' })], undefined, /the name is reserved/],
    ['half a surrogate pair', [one({ name: '\udc00' })], undefined, /surrogate/],
    ['too few elements', [one({ shape: [3] })], undefined, /tensor "w": F32 \[3\] takes 12 bytes, and its data have 8 \(Float32Array of 2\)/],
    ['a type that does not convert', [one({ dtype: 'I32' })], undefined, /a Float32Array does not become I32/],
    ['a fractional shape', [one({ shape: [0.5, 4] })], undefined, /F32 \[0.5,4\] is not a dtype and shape/],
    ['an unknown dtype', [one({ dtype: 'F8' as 'F16' })], undefined, /F8 \[2\] is not a dtype and shape/],
    ['metadata that are no string', [one({})], { step: 3 as unknown as string }, /metadata entry "step": it must be a string, and is 3/],
  ])('refuses %s', async (_, tensors, metadata, message) => {
    expect(await messageOf('safetensors', (async () => writeSafetensors(tensors, metadata))())).toMatch(message);
  });
});

describe('sharded weights', () => {
  const shard = (name: string, tensors: Record<string, number>): ByteSource & { closed: number } => ({
    ...bytesSource(writeSafetensors(Object.entries(tensors).map(([key, value]) => ({ name: key, dtype: 'F32' as const, shape: [1], data: Float32Array.of(value) })), { [name]: 'yes' }), 'bytes'),
    closed: 0,
    async close() {
      this.closed++;
    },
  });
  const index = (weightMap: unknown): ByteSource => bytesSource(new TextEncoder().encode(typeof weightMap === 'string' ? weightMap : JSON.stringify({ metadata: { total_size: 8 }, weight_map: weightMap })), 'm.index.json');

  test('is one store, even if the sources share a name; close() closes all', async () => {
    const shards = { one: shard('one', { a: 1, b: 2 }), two: shard('two', { c: 3 }) };
    const opened: string[] = [];
    const store = await openSharded(index({ a: 'one', c: 'two', b: 'one' }), async (file) => (opened.push(file), shards[file as 'one']));
    expect(opened).toEqual(['one', 'two']);
    expect(store.name).toBe('m.index.json');
    expect([...store.tensors.keys()]).toEqual(['a', 'b', 'c']);
    expect({ ...store.metadata }).toEqual({ one: 'yes', two: 'yes' });
    for (const [i, name] of ['a', 'b', 'c'].entries()) expect([...(await store.readF32(name))]).toEqual([i + 1]);
    await store.close();
    expect([shards.one.closed, shards.two.closed]).toEqual([1, 1]);
  });

  test('an index that contradicts its shards is refused, and they are closed', async () => {
    const shards = { one: shard('one', { a: 1, extra: 2 }), two: shard('two', { c: 3 }) };
    const told = await messageOf('safetensors', openSharded(index({ a: 'one', b: 'one', c: 'two' }), async (file) => shards[file as 'one']));
    expect(told).toBe('m.index.json: the index and its shards disagree: 1 listed but absent: b (not in one); 1 present but not listed there: extra (in one); are all files of one download?');
    expect([shards.one.closed, shards.two.closed]).toEqual([1, 1]);
  });

  test.each([
    ['not JSON', '{', /index is malformed JSON/],
    ['no weight_map', '{}', /no "weight_map" object/],
    ['a duplicate', '{"weight_map":{"a":"x","a":"y"}}', /"a" is given twice in "weight_map"/],
    ['a path upwards', '{"weight_map":{"a":"../secrets"}}', /gives tensor "a" the file "\.\.\/secrets"; a plain file name/],
    ['the folder above', '{"weight_map":{"a":".."}}', /plain file name/],
    ['a Windows path', '{"weight_map":{"a":"C:\\\\x"}}', /plain file name/],
    ['an address', '{"weight_map":{"a":"http://x/y"}}', /plain file name/],
    ['a number', '{"weight_map":{"a":1}}', /the file 1;/],
  ])('refuses %s', async (_, json, message) => {
    const open = async (): Promise<ByteSource> => expect.fail('a shard was opened');
    expect(await messageOf('safetensors', openSharded(index(json), open))).toMatch(message);
  });
});

describe('properties', () => {
  const arrays: Record<SafetensorsDtype, (bytes: Uint8Array<ArrayBuffer>) => TensorData> = {
    U64: (b) => new BigUint64Array(b.buffer),
    I64: (b) => new BigInt64Array(b.buffer),
    F64: (b) => new Float64Array(b.buffer),
    F32: (b) => new Float32Array(b.buffer),
    U32: (b) => new Uint32Array(b.buffer),
    I32: (b) => new Int32Array(b.buffer),
    BF16: (b) => new Uint16Array(b.buffer),
    F16: (b) => new Uint16Array(b.buffer),
    U16: (b) => new Uint16Array(b.buffer),
    I16: (b) => new Int16Array(b.buffer),
    I8: (b) => new Int8Array(b.buffer),
    U8: (b) => b,
    BOOL: (b) => b,
  };
  const SIZE: Record<SafetensorsDtype, number> = { U64: 8, I64: 8, F64: 8, F32: 4, U32: 4, I32: 4, BF16: 2, F16: 2, U16: 2, I16: 2, I8: 1, U8: 1, BOOL: 1 };
  const product = (shape: readonly number[]): number => shape.reduce((a, b) => a * b, 1);

  const tensor = fc
    .record({
      name: fc.oneof(fc.string({ unit: 'binary' }), fc.constantFrom('__proto__', 'conv_in.weight')).filter((name) => name !== '__metadata__'),
      dtype: fc.constantFrom(...(Object.keys(SIZE) as SafetensorsDtype[])),
      shape: fc.array(fc.nat(4), { maxLength: 4 }),
    })
    .chain(({ name, dtype, shape }) => {
      const length = product(shape) * SIZE[dtype];
      return fc.uint8Array({ minLength: length, maxLength: length, size: 'max' }).map((bytes) => ({ name, dtype, shape, bytes: new Uint8Array(bytes) }));
    });
  const tensors = fc.uniqueArray(tensor, { selector: (t) => t.name, maxLength: 6 });
  const metadata = fc.dictionary(fc.string({ unit: 'binary' }), fc.string({ unit: 'binary' }), { maxKeys: 3 });

  test('what is written is read back, in the order and alignment of the format', async () => {
    await fc.assert(
      fc.asyncProperty(tensors, metadata, async (list, meta) => {
        const file = writeSafetensors(list.map(({ name, dtype, shape, bytes }) => ({ name, dtype, shape, data: arrays[dtype](bytes) })), meta);
        const store = await openBytes(file);
        expect(store.tensors.size).toBe(list.length);
        expect(Object.entries(store.metadata).sort()).toEqual(Object.entries(meta).sort());
        for (const { name, dtype, shape, bytes } of list) {
          const info = store.tensors.get(name)!;
          expect({ dtype: info.dtype, shape: info.shape }).toEqual({ dtype, shape });
          expect(info.byteOffset % SIZE[dtype]).toBe(0);
          expect(Buffer.compare(await store.readRaw(name), bytes)).toBe(0);
          expect((await store.readF32(name)).length).toBe(product(shape));
        }
      }),
      { numRuns: 150 },
    );
  });

  test('a mutated file is either refused with a BruitError or gives tensors of their stated size', async () => {
    const base = writeSafetensors(
      [
        { name: 'conv_in.weight', dtype: 'F32', shape: [2, 3], data: new Float32Array(6) },
        { name: 'conv_in.bias', dtype: 'F16', shape: [2], data: new Uint16Array(2) },
        { name: 'ids', dtype: 'I64', shape: [1, 2], data: new BigInt64Array(2) },
        { name: 'mask', dtype: 'BOOL', shape: [5], data: new Uint8Array(5) },
      ],
      { format: 'pt' },
    );
    const headerLength = Number(new DataView(base.buffer).getBigUint64(0, true));
    const at = fc.oneof({ weight: 1, arbitrary: fc.nat(7) }, { weight: 6, arbitrary: fc.integer({ min: 8, max: 8 + headerLength }) }, { weight: 1, arbitrary: fc.nat(base.length) });
    // Characters that mean something in a header keep more mutants past the JSON parser than random bytes would.
    const byte = fc.oneof(fc.nat(255), fc.constantFrom(...Buffer.from('0123456789-.eE{}[],:" \\uFIBO_')));
    const mutation = fc.oneof(
      fc.record({ kind: fc.constant('set' as const), at, byte }),
      fc.record({ kind: fc.constant('insert' as const), at, byte }),
      fc.record({ kind: fc.constant('delete' as const), at, byte }),
      fc.record({ kind: fc.constant('cut' as const), at, byte }),
      fc.record({ kind: fc.constant('swap' as const), at, byte: fc.nat(40) }),
    );
    let opened = 0;
    let refused = 0;
    await fc.assert(
      fc.asyncProperty(fc.array(mutation, { minLength: 1, maxLength: 3 }), fc.boolean(), async (mutations, keepLength) => {
        let bytes = [...base];
        for (const m of mutations) {
          if (m.kind === 'set') bytes[m.at % bytes.length] = m.byte;
          else if (m.kind === 'insert') bytes.splice(m.at, 0, m.byte);
          else if (m.kind === 'delete') bytes.splice(m.at, 1);
          else if (m.kind === 'cut') bytes = bytes.slice(0, Math.max(m.at, 1));
          else bytes.push(...bytes.splice(m.at, m.byte));
        }
        const file = Uint8Array.from(bytes);
        // Half of the time the length is made to fit again, or insertions would never be looked at any further.
        if (keepLength && file.length > 8) new DataView(file.buffer).setBigUint64(0, BigInt(Math.max(0, Math.min(file.length - 8, headerLength + file.length - base.length))), true);
        try {
          const store = await openBytes(file);
          let bytesSeen = 0;
          for (const info of store.tensors.values()) {
            const raw = await store.readRaw(info.name);
            expect(raw.length).toBe(product(info.shape) * SIZE[info.dtype]);
            expect((await store.readF32(info.name)).length).toBe(product(info.shape));
            bytesSeen += raw.length;
          }
          expect(8 + Number(new DataView(file.buffer).getBigUint64(0, true)) + bytesSeen).toBe(file.length);
          opened++;
        } catch (error) {
          if (!(error instanceof BruitError)) throw error;
          expect(error.code).toBe('safetensors');
          refused++;
        }
      }),
      { numRuns: 3000 },
    );
    // Both outcomes must really have been exercised.
    expect(opened).toBeGreaterThan(30);
    expect(refused).toBeGreaterThan(1000);
  });

  test('any bytes after any length are refused with a BruitError', async () => {
    await fc.assert(
      fc.asyncProperty(fc.uint8Array({ maxLength: 64 }), fc.boolean(), async (bytes, framed) => {
        const told = await openBytes(framed ? fileOf(bytes) : new Uint8Array(bytes)).catch((e: unknown) => e);
        expect(told).toBeInstanceOf(BruitError);
      }),
      { numRuns: 500 },
    );
  });

  test('F16 and BF16 data given as float32 come back rounded', async () => {
    await fc.assert(
      fc.asyncProperty(fc.float32Array({ maxLength: 20 }), async (values) => {
        const data = new Float32Array(values);
        const store = await openBytes(
          writeSafetensors([
            { name: 'h', dtype: 'F16', shape: [data.length], data },
            { name: 'b', dtype: 'BF16', shape: [data.length], data },
          ]),
        );
        const bits = new Uint16Array((await store.readRaw('h')).buffer);
        expect(await store.readF32('h')).toEqual(f16ToF32(bits));
        const brain = await store.readF32('b');
        for (const [i, x] of data.entries()) if (Number.isFinite(brain[i])) expect(Math.abs(brain[i]! - x)).toBeLessThanOrEqual(Math.max(Math.abs(x) * 2 ** -8, 2 ** -134));
      }),
    );
  });
});
