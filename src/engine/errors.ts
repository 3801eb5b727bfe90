/**
 * An error meant for a person: its message names the tensor, op, shapes or file at fault and says what to do.
 * `code` is stable and machine-readable (`shape`, `config`, `safetensors`, `checkpoint`, `shader`, `device`, `limit`, `input`, `io`, `aborted`).
 */
export class BruitError extends Error {
  constructor(
    readonly code: string,
    message: string,
    options?: ErrorOptions,
  ) {
    super(message, options);
    this.name = 'BruitError';
  }
}

/** Throws a {@link BruitError} unless `condition` holds; `message` is only evaluated on failure. */
export function check(condition: unknown, code: string, message: () => string): asserts condition {
  if (!condition) throw new BruitError(code, message());
}
