/**
 * `JSON.parse` that refuses a key given twice in one object, where `JSON.parse` silently keeps the last.
 * Keys are compared as decoded, so that `"a"` and `"\u0061"` are the same key.
 * @throws SyntaxError that says what is wrong and where.
 */
export function parseJson(text: string): unknown {
  const value: unknown = JSON.parse(text);
  // The text is valid JSON from here on, so finding strings and braces is enough; a stack of our own cannot overflow on deep nesting.
  const open: { keys: Set<string>; path: string }[] = [];
  let path = '';
  for (let i = 0; i < text.length; i++) {
    const c = text[i];
    if (c === '{') open.push({ keys: new Set(), path });
    else if (c === '}') open.pop();
    else if (c === '"') {
      const start = i;
      while (text[++i] !== '"') if (text[i] === '\\') i++;
      let next = i + 1;
      while (text.charCodeAt(next) <= 32) next++;
      if (text[next] !== ':') continue;
      const key = JSON.parse(text.slice(start, i + 1)) as string;
      const object = open.at(-1)!;
      if (object.keys.has(key)) throw new SyntaxError(`the key ${quote(key)} is given twice${object.path && ` in ${object.path}`} (again at character ${start})`);
      object.keys.add(key);
      path = quote(key);
    }
  }
  return value;
}

const quote = (key: string): string => JSON.stringify(key.length > 160 ? `${key.slice(0, 160)}…` : key);

/**
 * Parses JSON as Python writes it: `Infinity`, `-Infinity` and `NaN` outside strings become numbers.
 * @throws SyntaxError as JSON.parse does.
 */
export function parsePythonJson(text: string): unknown {
  const words: Record<string, number> = { __Infinity__: Infinity, '__-Infinity__': -Infinity, __NaN__: NaN };
  const quoted = text.replace(/("(?:[^"\\]|\\.)*")|-?\bInfinity\b|\bNaN\b/g, (match, string?: string) => string ?? `"__${match}__"`);
  return JSON.parse(quoted, (_key, value: unknown) => (typeof value === 'string' && value in words ? words[value] : value));
}

/** True for what JSON calls an object: not null, not an array. */
export function isJsonObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
