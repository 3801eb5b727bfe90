import { describe, expect, test } from 'vitest';
import { TorchCpuGenerator, TorchCudaGenerator, torchGenerator } from '../../src/engine/torch_rng';
import { loadGolden } from '../helpers/golden';
import { assertClose } from '../helpers/op_suite';

describe("torch's CPU generator", () => {
  const golden = loadGolden('torch_random', 'io.safetensors');

  test.each([...golden].filter(([name]) => name.startsWith('randn.')))('%s', (name, { shape, data }) => assertClose(name, new TorchCpuGenerator(Number(name.split('.')[1])).randn(shape), data, 1e-6));

  test.each([0, 1, 42, 2147483653])('seed %i: one draw after another', (seed) => {
    const generator = torchGenerator('torch-cpu', seed);
    const recorded = (n: number) => golden.get(`sequence.${seed}.${n}`)!;
    for (const n of [0, 1]) assertClose(`draw ${n}`, generator.randn(recorded(n).shape), recorded(n).data, 1e-6);
    expect([...generator.rand([20])]).toEqual([...recorded(2).data]);
    expect([...generator.randint(0, 1000, [16])]).toEqual([...recorded(3).data]);
  });

  test('a pair of small draws shares a spare number; bounds are checked', () => {
    const [a, b] = [new TorchCpuGenerator(3), new TorchCpuGenerator(3)];
    expect([...a.randn([3]), ...a.randn([1])]).toEqual([...b.randn([4])]);
    expect(() => a.randint(5, 5, [1])).toThrow(/randint\(5, 5\)/);
    expect([...a.randint(-3, -1, [50])].every((v) => v === -3 || v === -2)).toBe(true);
  });
});

describe("torch's CUDA generator", () => {
  test('seed 0, as torch.randn(…, device="cuda") prints it', () => {
    const draws = new TorchCudaGenerator(0).randn([5]);
    [-0.9247, -0.4253, -2.6438, 0.1452, -0.1209].forEach((v, i) => expect(draws[i]).toBeCloseTo(v, 4));
  });

  test('a number depends on its thread alone until the grid is full, then threads go on', () => {
    const small = new TorchCudaGenerator(7).randn([300]);
    expect([...new TorchCudaGenerator(7).randn([1000])].slice(0, 300)).toEqual([...small]);
    const full = new TorchCudaGenerator(7, { multiprocessors: 1, threadsPerMultiprocessor: 256 }).rand([1500]);
    const wide = new TorchCudaGenerator(7).rand([256]);
    expect([...full.subarray(0, 256)]).toEqual([...wide]);
    // Every thread's second to fourth numbers lie a grid apart, and its next four behind those of all threads.
    expect(new Set(full).size).toBeGreaterThan(1490);
    const later = new TorchCudaGenerator(7);
    later.rand([256]);
    expect([...full.subarray(1024, 1280)]).toEqual([...later.rand([256])]);
  });

  test('integers are words by remainder, uniforms below 1', () => {
    const integers = torchGenerator('torch-cuda', 1).randint(10, 13, [500]);
    expect(new Set(integers)).toEqual(new Set([10, 11, 12]));
    expect(new TorchCudaGenerator(1).rand([5000]).every((v) => v >= 0 && v < 1)).toBe(true);
  });
});
