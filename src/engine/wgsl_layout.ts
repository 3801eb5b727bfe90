/**
 * What the engine asks of wgsl_reflect, for bundles where a whole WGSL parser weighs too much: the sampling bundle has this in its place
 * (scripts/sampling_plugin.mjs). It reads this engine's own shaders, whose uniforms are structs of 32-bit scalars; anything else is an error.
 */

interface Resource {
  readonly name: string;
  readonly group: number;
  readonly binding: number;
  /** 0 uniform, 1 storage, as in wgsl_reflect. */
  readonly resourceType: 0 | 1;
  readonly access: string;
  readonly type: { readonly size: number; readonly members: readonly { readonly name: string; readonly offset: number; readonly type: { readonly name: string } }[] };
}

const scalars = new Set(['u32', 'i32', 'f32']);

export class WgslReflect {
  readonly entry: { readonly compute: { readonly name: string; readonly resources: Resource[] }[] };

  constructor(text: string) {
    const code = text.replace(/\/\/.*$|\/\*[^]*?\*\//gm, '');
    const resources = new Map<string, Resource>();
    for (const [, group, binding, space, access, name, type] of code.matchAll(/@group\((\d+)\)\s*@binding\((\d+)\)\s*var<(\w+)(?:\s*,\s*(\w+))?>\s*(\w+)\s*:\s*([^;]+);/g)) {
      const uniform = space === 'uniform';
      resources.set(name!, { name: name!, group: Number(group), binding: Number(binding), resourceType: uniform ? 0 : 1, access: access ?? 'read', type: uniform ? struct(code, type!.trim()) : { size: 0, members: [] } });
    }
    const functions = new Map<string, { readonly words: ReadonlySet<string>; readonly compute: boolean }>();
    for (const match of code.matchAll(/((?:@\w+\s*(?:\([^()]*\))?\s*)*)\bfn\s+(\w+)\s*\(/g)) {
      const body = code.slice(match.index + match[0].length, endOfBody(code, match.index));
      // Neither members nor what the function itself declares are names of bindings.
      const words = new Set(body.match(/(?<![.\w])[A-Za-z_]\w*/g));
      for (const [, parameter, local] of body.matchAll(/(\w+)\s*:|\b(?:let|const|var(?:<\w+>)?)\s+(\w+)/g)) words.delete((parameter ?? local)!);
      functions.set(match[2]!, { words, compute: /@compute\b/.test(match[1]!) });
    }
    const uses = (name: string, seen: Set<string>): Set<string> => {
      for (const word of functions.get(name)!.words) {
        if (seen.has(word)) continue;
        seen.add(word);
        if (functions.has(word)) uses(word, seen);
      }
      return seen;
    };
    this.entry = {
      compute: [...functions].filter(([, f]) => f.compute).map(([name]) => {
        const used = uses(name, new Set());
        return { name, resources: [...resources.values()].filter((r) => used.has(r.name)) };
      }),
    };
  }
}

function struct(code: string, name: string): Resource['type'] {
  const body = new RegExp(`\\bstruct\\s+${name}\\s*\\{([^}]*)\\}`).exec(code)?.[1];
  if (body === undefined) throw new Error(`no struct ${name}`);
  const members = [...body.matchAll(/(\w+)\s*:\s*([\w<>]+)/g)].map(([, member, type], i) => {
    if (!scalars.has(type!)) throw new Error(`${name}.${member} is ${type}; uniforms are made of u32, i32 and f32`);
    return { name: member!, offset: 4 * i, type: { name: type! } };
  });
  return { size: 4 * members.length, members };
}

/** Position after the closing brace of the function that starts at `from`. */
function endOfBody(code: string, from: number): number {
  let depth = 0;
  for (let i = code.indexOf('{', from); i < code.length; i++) {
    if (code[i] === '{') depth++;
    else if (code[i] === '}' && --depth === 0) return i + 1;
  }
  throw new Error('a function is not closed');
}
