/**
 * From a .wgsl file to a pipeline: includes, prologue, epilogue, reflection, cache.
 *
 * A shader file is valid WGSL as it lies on disk (after its includes). It may hold
 *   // include lib/NAME.wgsl            text put in its place; a dispatch may swap the file for another with the same functions
 *   // prologue … // end prologue       `const` and `alias` lines whose values a dispatch replaces by name
 *   // epilogue … // end epilogue       the function `epilogue`, replaced where a pointwise chain was fused onto the kernel's store
 * Bindings, uniform layouts and entry points are read from the final text with wgsl_reflect, so TypeScript knows only names.
 */
import { WgslReflect } from 'wgsl_reflect/wgsl_reflect.module.js';
import { BruitError } from './errors';
import type { AdapterProfile } from './device';
import { shaderLibrary } from './shader_library';

export interface ShaderSource {
  /** File name under shaders/, for errors and labels. */
  readonly file: string;
  readonly text: string;
}

export interface ShaderVariant {
  readonly prologue?: Readonly<Record<string, number | string | boolean>> | undefined;
  readonly includes?: Readonly<Record<string, string>> | undefined;
  /** Text of bindings and functions that replaces the epilogue block. */
  readonly epilogue?: string | undefined;
}

export interface BindingInfo {
  readonly binding: number;
  readonly type: GPUBufferBindingType;
}

export interface UniformLayout {
  readonly size: number;
  readonly fields: ReadonlyMap<string, { offset: number; type: 'u32' | 'i32' | 'f32' }>;
}

/** Everything that TypeScript knows of one entry point. */
export interface EntryInfo {
  readonly file: string;
  readonly entry: string;
  readonly text: string;
  /** By variable name, the uniforms `params` and `slice` (lib/index_of_slice.wgsl) included. */
  readonly bindings: ReadonlyMap<string, BindingInfo>;
  readonly params: UniformLayout | undefined;
}

const expanded = new Map<string, string>();

function expand(text: string, file: string, includes: Readonly<Record<string, string>>, seen: Set<string>, used: Set<string>): string {
  return text.replace(/^\/\/ include (\S+)$/gm, (_, path: string) => {
    used.add(path);
    const target = includes[path] ?? path;
    if (seen.has(target)) return '';
    seen.add(target);
    const body = shaderLibrary[target];
    if (body === undefined) throw new BruitError('shader', `shaders/${file}: include '${target}' is not a file of shaders/ known to src/engine/shader_library.ts`);
    return expand(body, target, includes, seen, used);
  });
}

/** The WGSL text of a variant: includes expanded, prologue values and epilogue put in. */
export function specialise(source: ShaderSource, variant: ShaderVariant = {}): string {
  const key = JSON.stringify([source.file, variant]);
  const cached = expanded.get(key);
  if (cached !== undefined) return cached;
  const used = new Set<string>();
  let text = expand(source.text, source.file, variant.includes ?? {}, new Set(), used);
  for (const path of Object.keys(variant.includes ?? {})) {
    if (!used.has(path)) throw new BruitError('shader', `shaders/${source.file}: there is no '// include ${path}' to replace`);
  }
  for (const [name, value] of Object.entries(variant.prologue ?? {})) {
    let found = false;
    text = text.replace(/^\/\/ prologue\n[^]*?^\/\/ end prologue$/gm, (block) =>
      block.replace(new RegExp(`^(const|alias) ${name}(\\s*:\\s*\\w+)? = [^;]*;`, 'gm'), (_, keyword: string, type: string | undefined) => {
        found = true;
        return `${keyword} ${name}${type ?? ''} = ${String(value)};`;
      }),
    );
    if (!found) throw new BruitError('shader', `shaders/${source.file}: the prologue declares no const or alias '${name}'`);
  }
  if (variant.epilogue !== undefined) {
    let found = false;
    text = text.replace(/^\/\/ epilogue\n[^]*?^\/\/ end epilogue$/m, () => {
      found = true;
      return variant.epilogue!;
    });
    if (!found) throw new BruitError('shader', `shaders/${source.file}: there is no epilogue block to replace`);
  }
  const code = text.replace(/\/\/.*$/gm, '');
  if (/\bsubgroup[A-Z]/.test(code)) text = `enable subgroups;\n${text}`;
  if (/\bf16\b/.test(code)) text = `enable f16;\n${text}`;
  text = enableMatrices(text, code);
  expanded.set(key, text);
  return text;
}

function enableMatrices(text: string, code: string): string {
  return /\bsubgroupMatrix/.test(code) ? `enable chromium_experimental_subgroup_matrix;\n${text}` : text;
}

/** The highest binding number in a text: what is bound besides comes after it. */
export const highestBinding = (text: string): number => Math.max(-1, ...[...text.matchAll(/@binding\((\d+)\)/g)].map((m) => Number(m[1])));

/**
 * The text without the functions that `entry` does not reach. Libraries are included whole; compilers and the reflection would read all of it,
 * and entry points of one file would each compile the others.
 */
function prune(text: string, entry: string): string {
  const code = text.replace(/\/\/.*$/gm, '');
  // Top-level functions with the attributes before them.
  const functions = new Map<string, { from: number; to: number; body: string }>();
  let depth = 0;
  let start = 0;
  for (let i = 0; i < code.length; i++) {
    const c = code[i];
    if (c === '{') depth++;
    else if (c === '}') depth--;
    if (depth > 0 || (c !== '}' && c !== ';')) continue;
    const declaration = code.slice(start, i + 1);
    const name = c === '}' ? /\bfn\s+(\w+)\s*\(/.exec(declaration.slice(0, declaration.indexOf('{')))?.[1] : undefined;
    if (name) functions.set(name, { from: start, to: i + 1, body: declaration });
    start = i + 1;
  }
  if (!functions.has(entry)) return text;
  const reached = new Set<string>();
  const visit = (name: string): void => {
    if (reached.has(name) || !functions.has(name)) return;
    reached.add(name);
    for (const [word] of functions.get(name)!.body.matchAll(/\b[a-z_]\w*(?=\s*\()/gi)) visit(word);
  };
  visit(entry);
  let result = '';
  let at = 0;
  for (const [name, { from, to }] of functions) {
    if (reached.has(name)) continue;
    result += code.slice(at, from);
    at = to;
  }
  return (result + code.slice(at)).replace(/\n\s*\n+/g, '\n');
}

const reflections = new Map<string, EntryInfo>();

/** Reads bindings and the layout of `params` of one entry point, whose text holds nothing that it does not need. */
export function reflect(file: string, text: string, entry: string): EntryInfo {
  const key = `${entry}\n${text}`;
  let info = reflections.get(key);
  if (!info) {
    info = reflectEntry(file, prune(text, entry), entry);
    reflections.set(key, info);
  }
  return info;
}

/** What wgsl_reflect can parse: it does not know template arguments of subgroup matrices, which say nothing about bindings. */
export function reflectable(text: string): string {
  return text.replace(/\b(subgroup_?[mM]atrix\w*)<[^>]*>/g, '$1');
}

function reflectEntry(file: string, text: string, entry: string): EntryInfo {
  const entries = new Map<string, EntryInfo>();
  let r: WgslReflect;
  try {
    r = new WgslReflect(reflectable(text));
  } catch (e) {
    throw new BruitError('shader', `shaders/${file}: cannot be parsed: ${(e as Error).message}`, { cause: e });
  }
  for (const f of r.entry.compute) {
    const bindings = new Map<string, BindingInfo>();
    let params: UniformLayout | undefined;
    for (const v of f.resources) {
      if (v.group !== 0) throw new BruitError('shader', `shaders/${file}: '${v.name}' is in group ${v.group}; all bindings are in group 0`);
      // resourceType 0 is a uniform buffer, 1 a storage buffer.
      bindings.set(v.name, { binding: v.binding, type: (v.resourceType as number) === 0 ? 'uniform' : v.access === 'read' ? 'read-only-storage' : 'storage' });
      if ((v.resourceType as number) === 0 && v.name !== 'slice') {
        if (v.name !== 'params') throw new BruitError('shader', `shaders/${file}: the uniform must be called 'params', not '${v.name}'`);
        const type = v.type as unknown as { members: { name: string; offset: number; type: { name: string } }[]; size: number };
        params = {
          size: Math.ceil(type.size / 16) * 16,
          fields: new Map(type.members.map((m) => [m.name, { offset: m.offset, type: m.type.name as 'u32' | 'i32' | 'f32' }])),
        };
      }
    }
    entries.set(f.name, { file, entry: f.name, text, bindings, params });
  }
  const info = entries.get(entry);
  if (!info) throw new BruitError('shader', `shaders/${file}: there is no compute entry point '${entry}' (there are: ${[...entries.keys()].join(', ')})`);
  return info;
}

/** Packs `params` values by the layout in the WGSL; a missing or unknown name is an error with the file's name. */
export function packParams(info: EntryInfo, values: Readonly<Record<string, number>>, into: DataView, at: number): void {
  const fields = info.params?.fields ?? new Map<string, never>();
  for (const name of Object.keys(values)) {
    if (!fields.has(name)) throw new BruitError('shader', `shaders/${info.file} (${info.entry}): params has no field '${name}'`);
  }
  for (const [name, { offset, type }] of fields) {
    const value = values[name];
    if (value === undefined) throw new BruitError('shader', `shaders/${info.file} (${info.entry}): no value for params.${name}`);
    if (type === 'f32') into.setFloat32(at + offset, value, true);
    else if (!Number.isInteger(value)) throw new BruitError('shader', `shaders/${info.file} (${info.entry}): params.${name} is ${type} but the value is ${value}`);
    else if (type === 'u32') into.setUint32(at + offset, value, true);
    else into.setInt32(at + offset, value, true);
  }
}

/** Pipelines by (text, entry, overrides); compiled asynchronously, shared by all programs of an engine. */
export class PipelineCache {
  private readonly modules = new Map<string, GPUShaderModule>();
  private readonly pipelines = new Map<string, Promise<GPUComputePipeline>>();

  constructor(
    private readonly device: GPUDevice,
    private readonly profile: AdapterProfile,
  ) {}

  /** Number of pipelines made so far. */
  get size(): number {
    return this.pipelines.size;
  }

  get(info: EntryInfo, overrides: Readonly<Record<string, number>> = {}): Promise<GPUComputePipeline> {
    const key = JSON.stringify([info.entry, overrides, info.text]);
    let pipeline = this.pipelines.get(key);
    if (!pipeline) {
      pipeline = this.create(info, overrides);
      this.pipelines.set(key, pipeline);
      pipeline.catch(() => this.pipelines.delete(key));
    }
    return pipeline;
  }

  private async create(info: EntryInfo, overrides: Readonly<Record<string, number>>): Promise<GPUComputePipeline> {
    const label = `${info.file}:${info.entry}`;
    const storage = [...info.bindings.values()].filter((b) => b.type !== 'uniform').length;
    if (storage > this.profile.limits.maxStorageBuffersPerShaderStage) {
      throw new BruitError('limit', `shaders/${info.file} (${info.entry}) binds ${storage} storage buffers; this device allows ${this.profile.limits.maxStorageBuffersPerShaderStage}`);
    }
    let module = this.modules.get(info.text);
    if (!module) {
      module = this.device.createShaderModule({ code: info.text, label: info.file });
      this.modules.set(info.text, module);
    }
    const layout = this.device.createBindGroupLayout({
      label,
      entries: [...info.bindings].map(([name, { binding, type }]) => ({ binding, visibility: GPUShaderStageFlags.COMPUTE, buffer: { type, hasDynamicOffset: name === 'slice' } })),
    });
    try {
      return await this.device.createComputePipelineAsync({
        label,
        layout: this.device.createPipelineLayout({ label, bindGroupLayouts: [layout] }),
        compute: { module, entryPoint: info.entry, constants: overrides },
      });
    } catch (e) {
      const messages = (await module.getCompilationInfo()).messages.filter((m) => m.type === 'error').map((m) => `  line ${m.lineNum}: ${m.message}`);
      throw new BruitError('shader', [`shaders/${info.file} (${info.entry}) does not compile: ${(e as Error).message}`, ...messages].join('\n'), { cause: e });
    }
  }
}

// GPUShaderStage is a global only where WebGPU is; its value is fixed by the specification.
const GPUShaderStageFlags = { COMPUTE: 4 } as const;
