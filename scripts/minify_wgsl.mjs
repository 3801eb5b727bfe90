/** Makes WGSL small for bundles. Names that TypeScript knows (bindings, `params`, prologues, entry points) stay. */

const marks = /^\/\/ (include \S+|prologue|end prologue|epilogue|end epilogue)$/;
const identifier = /(?<![.\w@])[A-Za-z_]\w*/g;
const declaredName = /^(?:@\w+\s*(?:\([^()]*\))?\s*)*(?:fn|struct|alias|const|override|var(?:<[^>]*>)?)\s+(\w+)/;

/**
 * Shaders by path without what only people read, what `constants` (names of prologues with the only value they have) never reach, and
 * declarations that nothing names, neither another shader nor `mentioned`, the words in the program's strings.
 */
export function minifyShaders(texts, constants, mentioned) {
  const shaders = new Map([...texts].map(([path, text]) => [path, split(Object.entries(constants).reduce(foldConstant, withoutComments(text)))]));
  const all = () => [...shaders.values()].flat();
  for (let before = Infinity; all().length < before; ) {
    before = all().length;
    const uses = new Map();
    for (const { words } of all()) for (const word of words) uses.set(word, (uses.get(word) ?? 0) + 1);
    // A piece names itself once. Swapped includes declare a name twice.
    const declared = new Map();
    for (const { name } of all()) if (name) declared.set(name, (declared.get(name) ?? 0) + 1);
    const live = ({ name, entry, fixed }) => fixed || !name || mentioned.has(name) || (!entry && uses.get(name) > declared.get(name));
    for (const [path, pieces] of shaders) shaders.set(path, pieces.filter(live));
  }
  const taken = new Set(all().flatMap(({ name }) => name ?? []));
  const names = shortModuleNames(all(), mentioned);
  const minified = (piece) => (piece.mark || piece.prologue ? piece : { ...piece, text: compact(shorten(shortenLocals(piece.text, taken), names)) });
  return new Map([...shaders].map(([path, pieces]) => [path, join(pieces.map(minified))]));
}

const withoutComments = (text) => text.split('\n').map((line) => (marks.test(line) ? line : line.replace(/\/\/.*$/, '').trimEnd())).filter((line) => line.trim()).join('\n');

/** Marks and module-scope declarations of a text without comments, in order. `fixed` ones are read or replaced by the engine. */
function split(text) {
  const pieces = [];
  let prologue = false;
  let epilogue = false;
  let depth = 0;
  let lines = [];
  for (const line of text.split('\n')) {
    if (marks.test(line)) {
      prologue = line === '// prologue' || (prologue && line !== '// end prologue');
      epilogue = line === '// epilogue' || (epilogue && line !== '// end epilogue');
      pieces.push({ text: line, words: new Set(), mark: true, fixed: true });
      continue;
    }
    lines.push(line);
    for (const c of line) depth += c === '{' ? 1 : c === '}' ? -1 : 0;
    if (depth > 0 || !/[;}]$/.test(line)) continue;
    const declaration = lines.join('\n');
    lines = [];
    pieces.push({ text: declaration, name: declaredName.exec(declaration)?.[1], words: new Set(declaration.match(/[A-Za-z_]\w*/g)), entry: declaration.includes('@compute'), fixed: prologue || epilogue, prologue });
  }
  return pieces;
}

/** A text whose constant `name` is `value`: branches on it go one way, and so does `select`. */
function foldConstant(text, [name, value]) {
  const closing = (from) => {
    let depth = 0;
    for (let i = from; ; i++) if (text[i] === '{' || text[i] === '(') depth++;
      else if ((text[i] === '}' || text[i] === ')') && --depth === 0) return i;
  };
  text = text.replace(new RegExp(`^const ${name} = .*\n`, 'm'), '');
  for (let branch; (branch = new RegExp(`if \\((!?)${name}\\) `).exec(text)); ) {
    const end = closing(branch.index + branch[0].length);
    const otherwise = text.startsWith(' else {', end + 1) ? closing(end + 7) : undefined;
    const body = (from, to) => text.slice(text.indexOf('{', from), to + 1);
    const taken = (branch[1] ? !value : value) ? body(branch.index, end) : otherwise ? body(end, otherwise) : '';
    const after = (otherwise ?? end) + 1;
    // What follows a return cannot be reached, and some compilers refuse it.
    if (/return[^;]*;\s*\}$/.test(taken)) {
      let depth = 1;
      let stop = after;
      for (; depth > 0; stop++) depth += text[stop] === '{' ? 1 : text[stop] === '}' ? -1 : 0;
      text = text.slice(0, branch.index) + taken.slice(1, -1) + text.slice(stop - 1);
    } else text = text.slice(0, branch.index) + taken + text.slice(after);
  }
  for (let at; (at = text.search(new RegExp(`select\\([^;]*, ${name}\\)`))) >= 0; ) {
    // The last select before the name is the one that it decides.
    at = text.lastIndexOf('select(', text.indexOf(`, ${name})`, at));
    const end = closing(at + 6);
    const operands = [];
    for (let i = at + 7, from = i, depth = 0; i <= end; i++) {
      depth += /[({[]/.test(text[i]) ? 1 : /[)}\]]/.test(text[i]) ? -1 : 0;
      if ((text[i] === ',' && depth === 0) || i === end) from = operands.push(text.slice(from, i).trim()) && i + 1;
    }
    if (operands.length !== 3 || operands[2] !== name) throw new Error(`cannot fold ${text.slice(at, end + 1)}`);
    text = `${text.slice(0, at)}(${operands[value ? 1 : 0]})${text.slice(end + 1)}`;
  }
  if (new RegExp(`\\b${name}\\b`).test(text)) throw new Error(`cannot fold ${name} in:\n${text}`);
  return text;
}

/** Short names for functions, structs, constants and private variables, the same in every shader, since they include one another. */
function shortModuleNames(pieces, mentioned) {
  const kept = new Set(mentioned);
  for (const { text, name, fixed } of pieces) {
    if (fixed || /^(@group|override)/.test(text)) kept.add(name);
    if (text.startsWith('struct ')) for (const [, field] of text.matchAll(/(\w+)\s*:/g)) kept.add(field);
  }
  const used = new Set(pieces.flatMap(({ words }) => [...words]));
  const free = shortNames(used, 'ABCDEFGHIJKLMNOPQRSTUVWXYZ');
  return new Map([...new Set(pieces.flatMap(({ name }) => (name && !kept.has(name) ? name : [])))].map((name) => [name, free.next().value]));
}

const shorten = (text, names) => text.replace(identifier, (name) => names.get(name) ?? name);

/** Parameters and variables of a function; none of another declaration. */
function localsOf(text) {
  const [, parameters] = /\bfn \w+\s*\(([^]*?)\)\s*(?:->[^{]*)?\{/.exec(text) ?? [];
  return parameters === undefined ? [] : [...parameters.matchAll(/(\w+)\s*:/g), ...text.matchAll(/\b(?:let|var(?:<[^>]*>)?|const)\s+(\w+)/g)].map(([, name]) => name);
}

/** Locals become their first letters where these are free, which compresses better than letters in order. */
function shortenLocals(text, taken) {
  const locals = new Set(localsOf(text).filter((name) => !taken.has(name)));
  const used = new Set([...taken, ...(text.match(identifier) ?? []).filter((name) => !locals.has(name))]);
  const free = shortNames(used);
  const names = new Map();
  for (const name of locals) {
    const own = [name[0], name[0] + name.at(-1)].find((short) => /^[a-z]+$/.test(short) && !used.has(short) && !keywords.has(short));
    if (own) used.add(own) && names.set(name, own);
  }
  for (const name of locals) if (!names.has(name)) names.set(name, free.next().value);
  return shorten(text, names);
}

const keywords = new Set(['as', 'do', 'fn', 'if', 'in', 'is', 'of', 'or']);

function* shortNames(used, letters = 'abcdefghijklmnopqrstuvwxyz') {
  for (let n = 0; ; n++) {
    const name = n < 26 ? letters[n] : letters[Math.floor(n / 26) - 1] + letters[n % 26];
    if (!used.has(name) && !keywords.has(name)) yield name;
  }
}

/** Without space that separates nothing. */
const compact = (text) => text.replace(/\s+/g, ' ').replace(/ ?([-+*/%=<>!&|^?:;,(){}[\]]) ?/g, '$1');

/** Marks and what stands in prologues, which the engine edits, have lines of their own. */
function join(pieces) {
  let text = '';
  let own = true;
  for (const piece of pieces) {
    const line = piece.mark || piece.prologue;
    text += (text && (line || own) ? '\n' : '') + piece.text;
    own = line;
  }
  return text;
}
