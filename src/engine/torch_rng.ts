/**
 * PyTorch's random numbers, so that a seed gives the draws that it gives there: the CPU's Mersenne Twister (Matsumoto & Nishimura 1998) and
 * CUDA's Philox, each with the way in which PyTorch turns words into numbers. Uniform and integer draws are exact; normal ones agree to
 * about 1e-6, since they go through logarithm and sine.
 */
import { BruitError } from './errors';
import { philox4x32, seedKey, type U32x2 } from './rng';
import { numel, showShape, type Shape } from './shape';

/** Where a pipeline takes its normal draws from. */
export interface NormalSource {
  /** Standard normal, float32. */
  randn(shape: Shape): Float32Array;
}

/** Draws continue from call to call, as those of one torch.Generator do. */
export interface TorchGenerator extends NormalSource {
  /** Uniform in [0, 1), float32. */
  rand(shape: Shape): Float32Array;
  /** Integers from `low` to `high` − 1. */
  randint(low: number, high: number, shape: Shape): Int32Array;
}

export const torchDevices = ['torch-cpu', 'torch-cuda'] as const;

/** torch.Generator(device).manual_seed(seed). */
export const torchGenerator = (device: (typeof torchDevices)[number], seed: number): TorchGenerator => (device === 'torch-cpu' ? new TorchCpuGenerator(seed) : new TorchCudaGenerator(seed));

function checkRange(low: number, high: number): number {
  const range = high - low;
  if (![low, high].every((v) => Number.isInteger(v) && Math.abs(v) <= 2 ** 31) || range < 1 || range >= 2 ** 32) throw new BruitError('input', `randint(${low}, ${high}): the bounds must be integers of 32 bits, the first the smaller`);
  return range;
}

const STATE = 624;
const SHIFT = 397;

/** A generator of torch's on the CPU. */
export class TorchCpuGenerator implements TorchGenerator {
  private readonly state = new Uint32Array(STATE);
  private at = STATE;
  /** Second number of a pair, kept for the next draw of fewer than 16. */
  private spare: number | undefined;

  /** Only the lowest 32 bits of the seed count. */
  constructor(seed: number) {
    [this.state[0]] = seedKey(seed);
    for (let i = 1; i < STATE; i++) {
      const before = this.state[i - 1]!;
      this.state[i] = Math.imul(1812433253, before ^ (before >>> 30)) + i;
    }
  }

  private twist(): void {
    const { state } = this;
    for (let i = 0; i < STATE; i++) {
      const mixed = (state[i]! & 0x80000000) | (state[(i + 1) % STATE]! & 0x7fffffff);
      state[i] = state[(i + SHIFT) % STATE]! ^ (mixed >>> 1) ^ (mixed & 1 ? 0x9908b0df : 0);
    }
    this.at = 0;
  }

  private word(): number {
    if (this.at === STATE) this.twist();
    let y = this.state[this.at++]!;
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  }

  /** 24 bits. */
  private uniform(): number {
    return (this.word() & 0xffffff) * 2 ** -24;
  }

  /** 53 bits, of two words, the high one first. */
  private uniform64(): number {
    const high = this.word();
    return ((high & 0x1fffff) * 2 ** 32 + this.word()) * 2 ** -53;
  }

  private normal(): number {
    const { spare } = this;
    this.spare = undefined;
    if (spare !== undefined) return spare;
    const [u1, u2] = [this.uniform64(), this.uniform64()];
    const radius = Math.sqrt(-2 * Math.log1p(-u2));
    this.spare = radius * Math.sin(2 * Math.PI * u1);
    return radius * Math.cos(2 * Math.PI * u1);
  }

  randn(shape: Shape): Float32Array {
    const count = numel(shape);
    if (count < 16) return Float32Array.from({ length: count }, () => this.normal());
    const out = this.rand(shape);
    // Eight pairs at a time, of numbers eight apart.
    const pairs = (from: number): void => {
      for (let j = from; j < from + 8; j++) {
        const radius = Math.sqrt(-2 * Math.log(1 - out[j]!));
        const angle = 2 * Math.PI * out[j + 8]!;
        out[j] = radius * Math.cos(angle);
        out[j + 8] = radius * Math.sin(angle);
      }
    };
    for (let i = 0; i + 16 <= count; i += 16) pairs(i);
    if (count % 16) {
      // The last sixteen are drawn again, whatever is there already.
      for (let i = count - 16; i < count; i++) out[i] = this.uniform();
      pairs(count - 16);
    }
    return out;
  }

  rand(shape: Shape): Float32Array {
    return Float32Array.from({ length: numel(shape) }, () => this.uniform());
  }

  randint(low: number, high: number, shape: Shape): Int32Array {
    const range = checkRange(low, high);
    return Int32Array.from({ length: numel(shape) }, () => (this.word() % range) + low);
  }
}

const BLOCK = 256;
/** Numbers that a thread draws at once. */
const UNROLL = 4;

export interface CudaShape {
  /** Multiprocessors of the GPU and threads that each holds; those of an A100 by default. They matter for tensors of more than their product. */
  readonly multiprocessors?: number;
  readonly threadsPerMultiprocessor?: number;
}

/** A generator of torch's on CUDA: thread i of a launch draws from Philox subsequence i, four numbers a time, a grid apart. */
export class TorchCudaGenerator implements TorchGenerator {
  private readonly key: U32x2;
  /** Counters that each subsequence has used. */
  private offset = 0;
  private readonly mostBlocks: number;

  constructor(seed: number, { multiprocessors = 108, threadsPerMultiprocessor = 2048 }: CudaShape = {}) {
    this.key = seedKey(seed);
    this.mostBlocks = multiprocessors * Math.floor(threadsPerMultiprocessor / BLOCK);
  }

  private fill<T extends Float32Array | Int32Array>(out: T, numbers: (words: readonly [number, number, number, number]) => readonly number[]): T {
    const count = out.length;
    const threads = BLOCK * Math.min(Math.ceil(count / BLOCK), this.mostBlocks);
    const rounds = Math.ceil(count / (threads * UNROLL));
    for (let round = 0; round < rounds; round++) {
      for (let thread = 0; thread < threads; thread++) {
        const first = round * threads * UNROLL + thread;
        if (first >= count) break;
        const four = numbers(philox4x32([this.offset + round, 0, thread, 0], this.key));
        for (let k = 0; k < UNROLL && first + k * threads < count; k++) out[first + k * threads] = four[k]!;
      }
    }
    this.offset += rounds;
    return out;
  }

  randn(shape: Shape): Float32Array {
    return this.fill(new Float32Array(numel(shape)), ([a, b, c, d]) => [...cudaBoxMuller(a, b), ...cudaBoxMuller(c, d)]);
  }

  rand(shape: Shape): Float32Array {
    // CUDA's are in (0, 1]; PyTorch turns the end around.
    return this.fill(new Float32Array(numel(shape)), (words) => words.map((w) => cudaUniform(w) % 1));
  }

  randint(low: number, high: number, shape: Shape): Int32Array {
    const range = checkRange(low, high);
    return this.fill(new Int32Array(numel(shape)), (words) => words.map((w) => (w % range) + low));
  }
}

const f32 = Math.fround;
/** A word in (0, 1], rounded as a float is. */
const cudaUniform = (word: number): number => f32(f32(f32(word) * 2 ** -32) + 2 ** -33);

/** curand's pair: the sine comes first. */
function cudaBoxMuller(x: number, y: number): [number, number] {
  const radius = Math.sqrt(-2 * Math.log(cudaUniform(x)));
  const turn = f32(2 ** -32 * 2 * Math.PI);
  const angle = f32(f32(f32(y) * turn) + f32(turn / 2));
  return [radius * Math.sin(angle), radius * Math.cos(angle)];
}

/** Draws that were recorded, played back in order in place of a generator. */
export class RecordedDraws implements NormalSource {
  private next = 0;

  /** @param of What was recorded, for messages. */
  constructor(
    private readonly draws: readonly { readonly shape: Shape; readonly data: Float32Array }[],
    private readonly of: string,
  ) {}

  /** Draws that nobody asked for yet. */
  get left(): number {
    return this.draws.length - this.next;
  }

  randn(shape: Shape): Float32Array {
    const draw = this.draws[this.next];
    if (!draw) throw new BruitError('input', `${this.of}: draw ${this.next} ${showShape(shape)} was asked for, but ${this.draws.length} are recorded`);
    if (numel(draw.shape) !== numel(shape)) throw new BruitError('input', `${this.of}: draw ${this.next} is recorded as ${showShape(draw.shape)}, but ${showShape(shape)} was asked for`);
    this.next++;
    return draw.data;
  }
}
