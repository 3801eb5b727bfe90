/** SentencePiece models (Kudo & Richardson 2018): the unigram vocabulary and the normaliser of a `spiece.model`. */
import { BruitError } from '../engine/errors';

export interface SentencePieceModel {
  /** Piece and log-probability by id. */
  readonly vocab: readonly (readonly [piece: string, score: number])[];
  readonly unkId: number;
  /** The ids of control pieces (`<pad>`, `</s>`), which no text matches. */
  readonly control: readonly number[];
  /** The text whose pieces the model was made of. */
  readonly normalize: (text: string) => string;
}

const pieceTypes = { unknown: 2, control: 3 } as const;
const unigram = 1;

/** Reads a ModelProto (sentencepiece_model.proto). @throws BruitError `config`, naming `file`, for files that are none, or not of the unigram kind. */
export function parseSentencePiece(bytes: Uint8Array, file: string): SentencePieceModel {
  const vocab: [string, number][] = [];
  const control: number[] = [];
  let unkId = -1;
  let kind = unigram;
  const spec = { charsmap: new Uint8Array(), dummyPrefix: true, removeExtra: true, escape: true };
  try {
    for (const { field, bytes: message } of fields(bytes)) {
      if (field === 1) {
        const piece = { text: '', score: 0, type: 1 };
        for (const f of fields(message!)) {
          if (f.field === 1) piece.text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(f.bytes);
          else if (f.field === 2) piece.score = f.float!;
          else if (f.field === 3) piece.type = f.integer!;
        }
        if (piece.type === pieceTypes.unknown) unkId = vocab.length;
        if (piece.type === pieceTypes.control) control.push(vocab.length);
        vocab.push([piece.text, piece.score]);
      } else if (field === 2) {
        for (const f of fields(message!)) if (f.field === 3) kind = f.integer!;
      } else if (field === 3) {
        for (const f of fields(message!)) {
          if (f.field === 2) spec.charsmap = f.bytes!;
          else if (f.field === 3) spec.dummyPrefix = f.integer !== 0;
          else if (f.field === 4) spec.removeExtra = f.integer !== 0;
          else if (f.field === 5) spec.escape = f.integer !== 0;
        }
      }
    }
  } catch (cause) {
    throw new BruitError('config', `${file}: not a SentencePiece model: ${(cause as Error).message}`, { cause });
  }
  if (vocab.length === 0 || unkId < 0) throw new BruitError('config', `${file}: not a SentencePiece model: it has ${vocab.length} pieces${vocab.length ? ', none of them for what is unknown' : ''}`);
  if (kind !== unigram) throw new BruitError('config', `${file}: a SentencePiece model of kind ${kind}; the unigram kind (${unigram}), which T5 uses, is supported`);
  const mapped = charsMap(spec.charsmap, file);
  return {
    vocab,
    unkId,
    control,
    normalize(text) {
      let y = mapped(text);
      if (spec.removeExtra) y = y.replace(/ +/g, ' ').replace(/^ | $/g, '');
      if (y === '') return '';
      if (spec.dummyPrefix) y = ` ${y}`;
      return spec.escape ? y.replaceAll(' ', '▁') : y;
    },
  };
}

interface Field {
  readonly field: number;
  /** Of wire type 0. */
  readonly integer?: number;
  /** Of wire type 2. */
  readonly bytes?: Uint8Array<ArrayBuffer>;
  /** Of wire type 5. */
  readonly float?: number;
}

/** The fields of a protocol-buffer message, in order. */
function* fields(message: Uint8Array): Generator<Field> {
  const view = new DataView(message.buffer, message.byteOffset, message.byteLength);
  let at = 0;
  const varint = (): number => {
    let value = 0;
    for (let factor = 1; ; factor *= 128) {
      const byte = view.getUint8(at++);
      value += (byte & 127) * factor;
      if (byte < 128) return value;
    }
  };
  while (at < message.length) {
    const tag = varint();
    const field = Math.floor(tag / 8);
    const wire = tag % 8;
    if (wire === 0) yield { field, integer: varint() };
    else if (wire === 1) at += 8;
    else if (wire === 5) {
      yield { field, float: view.getFloat32(at, true) };
      at += 4;
    } else if (wire === 2) {
      const length = varint();
      if (at + length > message.length) throw new RangeError(`field ${field} of ${length} bytes ends beyond the file`);
      yield { field, bytes: message.slice(at, at + length) };
      at += length;
    } else throw new RangeError(`field ${field} has the unknown wire type ${wire}`);
  }
}

/**
 * The normaliser's rules: a double-array trie (Darts-clone, as sentencepiece stores it) over UTF-8 bytes, whose values are places in a list of
 * zero-terminated replacements. The longest rule that fits at a place is applied; what none fits stays.
 */
function charsMap(blob: Uint8Array, file: string): (text: string) => string {
  if (blob.length === 0) return (text) => text;
  const view = new DataView(blob.buffer, blob.byteOffset, blob.byteLength);
  const size = blob.length < 4 ? Infinity : view.getUint32(0, true);
  if (4 + size > blob.length || size % 4) throw new BruitError('config', `${file}: its normalisation rules are damaged`);
  const units = Uint32Array.from({ length: size / 4 }, (_, i) => view.getUint32(4 + 4 * i, true));
  const replacements = blob.subarray(4 + size);
  const offset = (unit: number): number => (unit >>> 10) << ((unit & 512) >>> 6);
  /** Length in bytes of the longest rule at `at`, and its replacement. */
  const match = (text: Uint8Array, at: number): { length: number; value: number } => {
    let best = { length: 0, value: 0 };
    let node = offset(units[0]!);
    for (let i = at; i < text.length; i++) {
      node ^= text[i]!;
      const unit = units[node];
      // A unit answers to its own byte only.
      if (unit === undefined || (unit & 0x800000ff) >>> 0 !== text[i]!) break;
      node ^= offset(unit);
      if (unit & 256) best = { length: i - at + 1, value: units[node]! & 0x7fffffff };
    }
    return best;
  };
  return (text) => {
    const bytes = new TextEncoder().encode(text);
    const out: number[] = [];
    for (let at = 0; at < bytes.length; ) {
      const { length, value } = match(bytes, at);
      if (length > 0) {
        for (let i = value; replacements[i]; i++) out.push(replacements[i]!);
        at += length;
      } else {
        do out.push(bytes[at++]!);
        while ((bytes[at]! & 0xc0) === 0x80);
      }
    }
    return new TextDecoder('utf-8', { ignoreBOM: true }).decode(Uint8Array.from(out));
  };
}
