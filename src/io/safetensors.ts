/**
 * Reading and writing safetensors files (https://github.com/huggingface/safetensors).
 * Layout: u64 little-endian header length, a JSON header, then the tensors' bytes, row-major, little-endian.
 * This file reads numbers through typed arrays and so assumes a little-endian host, as WebGPU itself does.
 */
import { BruitError } from '../engine/errors';
import { bf16ToF32, f16ToF32, f32ToBf16, f32ToF16 } from './half';
import { isJsonObject, parseJson } from './json';
import type { ByteSource } from './source';

/** Bytes of one element, in the order in which the Python library stores the types of one file: descending alignment. */
const DTYPE_SIZE = { U64: 8, I64: 8, F64: 8, F32: 4, U32: 4, I32: 4, BF16: 2, F16: 2, U16: 2, I16: 2, I8: 1, U8: 1, BOOL: 1 } as const;

export type SafetensorsDtype = keyof typeof DTYPE_SIZE;

/** How the elements of each dtype lie in memory; 16-bit floats as their bits. */
const NATIVE = {
  U64: BigUint64Array,
  I64: BigInt64Array,
  F64: Float64Array,
  F32: Float32Array,
  U32: Uint32Array,
  I32: Int32Array,
  BF16: Uint16Array,
  F16: Uint16Array,
  U16: Uint16Array,
  I16: Int16Array,
  I8: Int8Array,
  U8: Uint8Array,
  BOOL: Uint8Array,
} as const;

export interface TensorInfo {
  readonly name: string;
  readonly dtype: SafetensorsDtype;
  readonly shape: readonly number[];
  /** Name of the file that holds the tensor: one shard's, where there are several. */
  readonly file: string;
  /** First byte, counted from the start of that file. */
  readonly byteOffset: number;
  readonly byteLength: number;
}

/** Named tensors in one file or in several; only headers are read until a tensor is asked for. */
export interface TensorStore {
  /** The file's name, or the index's where the tensors are sharded. */
  readonly name: string;
  /** The header's `__metadata__`. It has no prototype: any key is just a key. */
  readonly metadata: Readonly<Record<string, string>>;
  /** By name, in the order in which the data lie. */
  readonly tensors: ReadonlyMap<string, TensorInfo>;
  /**
   * The tensor's bytes as stored, little-endian.
   * @throws BruitError `safetensors` for an unknown name, `io` if reading fails.
   */
  readRaw(name: string): Promise<Uint8Array>;
  /** The tensor's elements as float32, from any dtype: rounded to nearest from F64 and wide integers, exact from F16, BF16 and small integers, 0 or 1 from BOOL. */
  readF32(name: string): Promise<Float32Array>;
  /**
   * The elements of an integer or BOOL tensor.
   * @throws BruitError `safetensors` for a float tensor, or a value outside int32.
   */
  readI32(name: string): Promise<Int32Array>;
  /** Closes the underlying sources. */
  close(): Promise<void>;
}

/** The Python library's limit. */
const MAX_HEADER = 100_000_000;

const fail = (message: string, cause?: unknown): never => {
  throw new BruitError('safetensors', message, cause === undefined ? undefined : { cause });
};

/** A name for a message; those of hostile files may be megabytes long. */
const quote = (name: string): string => describe(name);

// --- Reading ---------------------------------------------------------------------------------------------------------

/**
 * Opens a safetensors file: reads and validates its header, as strictly as the Python library, and no tensor.
 * @throws BruitError `safetensors` naming the file, the tensor and the numbers that contradict each other.
 */
export async function openSafetensors(source: ByteSource): Promise<TensorStore> {
  const { name, size } = source;
  if (size < 8) fail(`${name}: truncated: ${size} bytes, and the header's length alone takes 8`);
  const start = await source.read(0, Math.min(size, 16));
  const declared = new DataView(start.buffer, start.byteOffset).getBigUint64(0, true);
  if (declared > MAX_HEADER) fail(`${name}: header length ${declared} is over the limit of ${MAX_HEADER} bytes${otherFormat(start)}`);
  const headerLength = Number(declared);
  if (8 + headerLength > size) fail(`${name}: truncated: the header takes ${headerLength} bytes after the first 8, but the file has only ${size}`);
  const bytes = await source.read(8, headerLength);
  if (bytes[0] !== 0x7b) fail(`${name}: the header must begin with "{"${headerLength ? `, and begins with byte 0x${bytes[0]!.toString(16).padStart(2, '0')}` : ', and is empty'}${otherFormat(start)}`);
  const { metadata, tensors } = parseHeader(bytes, name, 8 + headerLength, size);
  return new Store(name, metadata, tensors, (info) => source.read(info.byteOffset, info.byteLength), async () => source.close?.());
}

/** A hint if the first bytes are those of something that people mistake for safetensors. */
function otherFormat(start: Uint8Array): string {
  const text = String.fromCharCode(...start);
  if (text.startsWith('PK\x03\x04') || text.startsWith('\x80\x02')) return '. This looks like a PyTorch checkpoint (.bin, .ckpt, .pt): convert it to safetensors first';
  if (text.startsWith('version http')) return '. This looks like a Git LFS pointer: fetch the file itself (git lfs pull)';
  if (text.startsWith('GGUF')) return '. This looks like a GGUF file, which is not supported';
  if (/^\s*<(!doctype|html)/i.test(text)) return '. This looks like a web page: use the direct download address';
  if (/^\s*\{/.test(text)) return '. This looks like JSON: for sharded weights, open it as an index (*.index.json)';
  return '. Is this a safetensors file?';
}

function parseHeader(bytes: Uint8Array, file: string, dataStart: number, fileSize: number) {
  let text: string;
  try {
    text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch (cause) {
    return fail(`${file}: the header (${bytes.length} bytes) is not valid UTF-8`, cause);
  }
  let header: unknown;
  try {
    header = parseJson(text);
  } catch (cause) {
    return fail(`${file}: the header is malformed JSON: ${(cause as Error).message}`, cause);
  }
  // It begins with "{", so it is an object. Object.entries sees an own "__proto__" like any other key.
  const dataLength = fileSize - dataStart;
  const metadata = Object.create(null) as Record<string, string>;
  const list: TensorInfo[] = [];
  for (const [name, entry] of Object.entries(header as object)) {
    if (!isWellFormed(name)) fail(`${file}: tensor name ${quote(name)} holds half of a surrogate pair`);
    if (name === '__metadata__') {
      if (!isJsonObject(entry)) return fail(`${file}: __metadata__ must be an object of strings, and is ${describe(entry)}`);
      for (const [key, value] of Object.entries(entry)) {
        if (typeof value !== 'string') return fail(`${file}: __metadata__ entry ${quote(key)} must be a string, and is ${describe(value)}`);
        metadata[key] = value;
      }
    } else list.push(tensorInfo(name, entry, file, dataStart, dataLength));
  }
  // The data must be covered exactly, each byte once: the Python library refuses holes too, since they could hide content.
  list.sort((a, b) => a.byteOffset - b.byteOffset || a.byteLength - b.byteLength);
  let end = 0;
  let previous = '';
  for (const { name, byteOffset, byteLength } of list) {
    const begin = byteOffset - dataStart;
    if (begin < end) fail(`${file}: tensor ${quote(name)} at data bytes ${begin} to ${begin + byteLength} overlaps tensor ${quote(previous)}, which ends at ${end}`);
    if (begin > end) fail(`${file}: data bytes ${end} to ${begin}, before tensor ${quote(name)}, belong to no tensor`);
    end = begin + byteLength;
    previous = name;
  }
  if (end !== dataLength) fail(`${file}: ${list.length ? `the last tensor, ${quote(previous)}, ends at data byte ${end}` : 'there are no tensors'}, but the file goes on for ${dataLength - end} bytes`);
  return { metadata, tensors: new Map(list.map((info) => [info.name, info])) };
}

/** Validates one header entry by itself. */
function tensorInfo(name: string, entry: unknown, file: string, dataStart: number, dataLength: number): TensorInfo {
  const at = `${file}: tensor ${quote(name)}`;
  if (!isJsonObject(entry)) return fail(`${at}: its entry must be an object with dtype, shape and data_offsets, and is ${describe(entry)}`);
  const { dtype, shape, data_offsets: offsets } = entry;
  if (!isDtype(dtype)) return fail(`${at}: ${dtype === undefined ? 'no dtype' : `unknown dtype ${describe(dtype)}`}; known are ${Object.keys(DTYPE_SIZE).join(', ')}`);
  if (!isSizes(shape)) return fail(`${at}: shape must be a list of whole numbers from 0 to 2^53 - 1, and is ${describe(shape)}`);
  if (!isSizes(offsets) || offsets.length !== 2) return fail(`${at}: data_offsets must be two whole numbers from 0 to 2^53 - 1, and is ${describe(offsets)}`);
  const [begin, end] = offsets as [number, number];
  if (end < begin) fail(`${at}: data_offsets [${begin},${end}] end before they begin`);
  if (end > dataLength) fail(`${at}: data_offsets [${begin},${end}] reach beyond the ${dataLength} data bytes of the file. Is it truncated?`);
  const bytes = byteLength(dtype, shape);
  if (bytes === undefined) fail(`${at}: ${dtype} ${describe(shape)} has more than 2^53 - 1 bytes`);
  if (bytes !== end - begin) fail(`${at}: ${dtype} ${describe(shape)} takes ${bytes} bytes, but data_offsets [${begin},${end}] hold ${end - begin}`);
  return { name, dtype, shape, file, byteOffset: dataStart + begin, byteLength: end - begin };
}

function isDtype(value: unknown): value is SafetensorsDtype {
  return typeof value === 'string' && Object.hasOwn(DTYPE_SIZE, value);
}

function isSizes(value: unknown): value is number[] {
  return Array.isArray(value) && value.every((n) => Number.isSafeInteger(n) && n >= 0 && !Object.is(n, -0));
}

/** Bytes of a tensor; undefined if the running product leaves the exact integers, even where a later dimension is 0 (the Python library refuses that too). */
function byteLength(dtype: SafetensorsDtype, shape: readonly number[]): number | undefined {
  let n = 1;
  for (const dim of [...shape, DTYPE_SIZE[dtype]]) {
    n *= dim;
    if (!Number.isSafeInteger(n)) return undefined;
  }
  return n;
}

/** A value of the header for a message, cut if long. */
function describe(value: unknown): string {
  if (value === undefined) return 'missing';
  let text: string;
  try {
    text = JSON.stringify(value);
  } catch {
    return 'nested too deeply to show'; // JSON.parse accepts more levels than JSON.stringify has stack for
  }
  return text.length > 160 ? `${text.slice(0, 160)}…` : text;
}

function isWellFormed(text: string): boolean {
  return !/\p{Surrogate}/u.test(text);
}

class Store implements TensorStore {
  constructor(
    readonly name: string,
    readonly metadata: Readonly<Record<string, string>>,
    readonly tensors: ReadonlyMap<string, TensorInfo>,
    private readonly read: (info: TensorInfo) => Promise<Uint8Array>,
    readonly close: () => Promise<void>,
  ) {}

  async readRaw(name: string): Promise<Uint8Array> {
    const info = this.info(name);
    return info.byteLength === 0 ? new Uint8Array(0) : this.read(info);
  }

  async readF32(name: string): Promise<Float32Array> {
    const { dtype } = this.info(name);
    const values = nativeView(dtype, await this.readRaw(name));
    if (values instanceof Float32Array) return values;
    if (dtype === 'F16') return f16ToF32(values as Uint16Array);
    if (dtype === 'BF16') return bf16ToF32(values as Uint16Array);
    if (dtype === 'BOOL') return Float32Array.from(values as Uint8Array, (v) => (v ? 1 : 0));
    if (values instanceof BigInt64Array || values instanceof BigUint64Array) {
      const out = new Float32Array(values.length);
      for (let i = 0; i < out.length; i++) out[i] = Number(values[i]);
      return out;
    }
    return new Float32Array(values);
  }

  async readI32(name: string): Promise<Int32Array> {
    const { dtype, shape, file } = this.info(name);
    const at = `${file}: tensor ${quote(name)} (${dtype} ${describe(shape)})`;
    if (dtype === 'F64' || dtype === 'F32' || dtype === 'F16' || dtype === 'BF16') fail(`${at} holds floats where integers are wanted`);
    const values = nativeView(dtype, await this.readRaw(name));
    if (values instanceof Int32Array) return values;
    const out = new Int32Array(values.length);
    for (let i = 0; i < out.length; i++) {
      out[i] = dtype === 'BOOL' ? Number(values[i] !== 0) : Number(values[i]);
      if (dtype !== 'BOOL' && out[i] !== Number(values[i])) fail(`${at}: element ${i} is ${values[i]}, outside the range of int32`);
    }
    return out;
  }

  private info(name: string): TensorInfo {
    return this.tensors.get(name) ?? fail(`${this.name}: there is no tensor ${quote(name)} among its ${this.tensors.size}`);
  }
}

/** Views bytes as elements, copying only where the platform's alignment rule demands it. */
function nativeView(dtype: SafetensorsDtype, bytes: Uint8Array) {
  const size = DTYPE_SIZE[dtype];
  const aligned = bytes.byteOffset % size === 0 ? bytes : new Uint8Array(bytes);
  return new NATIVE[dtype](aligned.buffer as ArrayBuffer, aligned.byteOffset, bytes.byteLength / size);
}

/**
 * Opens sharded weights from their index (`*.index.json`: `weight_map` from tensor name to file name).
 * @param index The index file.
 * @param open Opens a shard by its name, which is a plain file name beside the index.
 * @returns One store over all shards; its metadata are the shards' put together.
 * @throws BruitError `safetensors` for a malformed index, a malformed shard, or an index that contradicts its shards.
 */
export async function openSharded(index: ByteSource, open: (file: string) => Promise<ByteSource>): Promise<TensorStore> {
  const at = index.name;
  if (index.size > MAX_HEADER) fail(`${at}: ${index.size} bytes; an index has at most ${MAX_HEADER}`);
  const bytes = await index.read(0, index.size);
  let json: unknown;
  try {
    json = parseJson(new TextDecoder('utf-8', { fatal: true }).decode(bytes));
  } catch (cause) {
    fail(`${at}: the index is malformed JSON: ${(cause as Error).message}`, cause);
  }
  const weightMap = isJsonObject(json) ? json.weight_map : undefined;
  if (!isJsonObject(weightMap)) return fail(`${at}: the index has no "weight_map" object from tensor names to files`);
  const fileOf = new Map<string, string>();
  for (const [name, file] of Object.entries(weightMap)) {
    // The index may come from anywhere: it must not reach outside its own folder.
    if (typeof file !== 'string' || !/^[^/\\:]+$/.test(file) || file === '.' || file === '..') return fail(`${at}: weight_map gives tensor ${quote(name)} the file ${describe(file)}; a plain file name beside the index is wanted`);
    fileOf.set(name, file);
  }
  const metadata = Object.create(null) as Record<string, string>;
  const tensors = new Map<string, TensorInfo>();
  const shardOf = new Map<string, TensorStore>();
  const sources: ByteSource[] = [];
  const unlisted: string[] = [];
  const close = async () => void (await Promise.all(sources.map(async (source) => source.close?.())));
  try {
    for (const file of new Set(fileOf.values())) {
      const source = await open(file);
      sources.push(source);
      const shard = await openSafetensors(source);
      Object.assign(metadata, shard.metadata);
      for (const [name, info] of shard.tensors) {
        if (fileOf.get(name) === file) {
          tensors.set(name, info);
          shardOf.set(name, shard);
        } else unlisted.push(`${name} (in ${file})`);
      }
    }
    const absent = [...fileOf].filter(([name]) => !tensors.has(name)).map(([name, file]) => `${name} (not in ${file})`);
    if (absent.length || unlisted.length) {
      const some = (names: string[]) => names.slice(0, 5).join(', ') + (names.length > 5 ? ` and ${names.length - 5} more` : '');
      fail(`${at}: the index and its shards disagree:${absent.length ? ` ${absent.length} listed but absent: ${some(absent)};` : ''}${unlisted.length ? ` ${unlisted.length} present but not listed there: ${some(unlisted)};` : ''} are all files of one download?`);
    }
  } catch (error) {
    await close().catch(() => {}); // the first error is the one to tell
    throw error;
  }
  return new Store(at, metadata, tensors, (info) => shardOf.get(info.name)!.readRaw(info.name), close);
}

// --- Writing ---------------------------------------------------------------------------------------------------------

/**
 * Elements to write, row-major. What each dtype takes:
 * - any: a `Uint8Array` of the little-endian bytes as they are to be stored;
 * - its own typed array (F64 `Float64Array`, I64 `BigInt64Array`, ...; F16 and BF16 a `Uint16Array` of bits);
 * - F16, BF16, F64: a `Float32Array`, rounded to nearest even or widened;
 * - I64: an `Int32Array`, widened.
 */
export type TensorData = Uint8Array | Int8Array | Int16Array | Uint16Array | Int32Array | Uint32Array | BigInt64Array | BigUint64Array | Float32Array | Float64Array;

export interface TensorToWrite<Data = TensorData> {
  readonly name: string;
  readonly dtype: SafetensorsDtype;
  readonly shape: readonly number[];
  readonly data: Data;
}

/**
 * Writes a safetensors file in memory, as the Python library lays it out: by dtype (descending alignment), then by name; header padded with spaces to a multiple of 8.
 * Every tensor is thereby aligned to its element size.
 * @throws BruitError `safetensors` for a duplicate or reserved name, or data that contradict dtype and shape.
 */
export function writeSafetensors(tensors: Iterable<TensorToWrite>, metadata?: Readonly<Record<string, string>>): Uint8Array<ArrayBuffer> {
  const { header, sorted, size } = layOut(tensors, metadata);
  const out = new Uint8Array(size);
  out.set(header);
  let at = header.length;
  for (const tensor of sorted) {
    const bytes = encode(tensor, tensor.data);
    out.set(bytes, at);
    at += bytes.length;
  }
  return out;
}

/**
 * The same file, piece by piece, for files that should not be in memory at once: the header, then each tensor's bytes.
 * `data` may be a function, called when the tensor's turn comes, so that it can be read back from the GPU just then.
 * A piece may be a view of the caller's data: use it before changing those.
 */
export async function* safetensorsChunks(
  tensors: Iterable<TensorToWrite<TensorData | (() => TensorData | Promise<TensorData>)>>,
  metadata?: Readonly<Record<string, string>>,
): AsyncGenerator<Uint8Array, void> {
  const { header, sorted } = layOut(tensors, metadata);
  yield header;
  for (const tensor of sorted) yield encode(tensor, typeof tensor.data === 'function' ? await tensor.data() : tensor.data);
}

/** Header bytes, with the length before them, and the order in which the data follow. */
function layOut<T extends TensorToWrite<unknown>>(tensors: Iterable<T>, metadata?: Readonly<Record<string, string>>) {
  const utf8 = new TextEncoder();
  const order = Object.keys(DTYPE_SIZE);
  const entries = [...tensors].map((tensor) => ({ tensor, key: utf8.encode(tensor.name), rank: order.indexOf(tensor.dtype) }));
  entries.sort((a, b) => a.rank - b.rank || compareBytes(a.key, b.key));

  const parts: string[] = [];
  if (metadata && Object.keys(metadata).length > 0) {
    for (const [key, value] of Object.entries(metadata)) {
      if (typeof value !== 'string' || !isWellFormed(key + value)) fail(`cannot write metadata entry ${quote(key)}: it must be a string, and is ${describe(value)}`);
    }
    parts.push(`"__metadata__":${JSON.stringify(metadata)}`);
  }
  const names = new Set<string>(['__metadata__']);
  let offset = 0;
  for (const { tensor } of entries) {
    const { name, dtype, shape } = tensor;
    if (names.has(name) || !isWellFormed(name)) fail(`cannot write tensor ${quote(name)}: ${name === '__metadata__' ? 'the name is reserved' : names.has(name) ? 'there are two of that name' : 'the name holds half of a surrogate pair'}`);
    names.add(name);
    const bytes = isDtype(dtype) && isSizes(shape) ? byteLength(dtype, shape) : undefined;
    if (bytes === undefined) return fail(`cannot write tensor ${quote(name)}: ${dtype} ${describe(shape)} is not a dtype and shape that the format can hold`);
    parts.push(`${JSON.stringify(name)}:${JSON.stringify({ dtype, shape, data_offsets: [offset, offset + bytes] })}`);
    offset += bytes;
  }
  const json = utf8.encode(`{${parts.join(',')}}`);
  const padded = Math.ceil(json.length / 8) * 8;
  if (padded > MAX_HEADER) fail(`cannot write: a header of ${padded} bytes is over the format's limit of ${MAX_HEADER}`);
  const header = new Uint8Array(8 + padded).fill(0x20, 8);
  new DataView(header.buffer).setBigUint64(0, BigInt(padded), true);
  header.set(json, 8);
  return { header, sorted: entries.map((entry) => entry.tensor), size: header.length + offset };
}

/** Order by code point, as the Python library sorts; JavaScript's own string order differs above U+FFFF. */
function compareBytes(a: Uint8Array, b: Uint8Array): number {
  const shared = Math.min(a.length, b.length);
  for (let i = 0; i < shared; i++) if (a[i] !== b[i]) return a[i]! - b[i]!;
  return a.length - b.length;
}

/** The bytes to store: a view of `data` where nothing has to be converted. */
function encode({ name, dtype, shape }: TensorToWrite<unknown>, data: TensorData): Uint8Array {
  let stored: TensorData = data;
  if (!(data instanceof Uint8Array || data instanceof NATIVE[dtype])) {
    if (data instanceof Float32Array && dtype === 'F16') stored = f32ToF16(data);
    else if (data instanceof Float32Array && dtype === 'BF16') stored = f32ToBf16(data);
    else if (data instanceof Float32Array && dtype === 'F64') stored = new Float64Array(data);
    else if (data instanceof Int32Array && dtype === 'I64') stored = BigInt64Array.from(data, BigInt);
    else fail(`cannot write tensor ${quote(name)}: a ${data.constructor.name} does not become ${dtype}`);
  }
  const wanted = byteLength(dtype, shape)!;
  if (stored.byteLength !== wanted) fail(`cannot write tensor ${quote(name)}: ${dtype} ${describe(shape)} takes ${wanted} bytes, and its data have ${stored.byteLength} (${data.constructor.name} of ${data.length})`);
  return new Uint8Array(stored.buffer, stored.byteOffset, stored.byteLength);
}
