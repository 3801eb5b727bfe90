/** Counts what a device was asked for and has not been given back. */
export interface LiveObjects {
  readonly buffers: number;
  readonly bytes: number;
  readonly textures: number;
  readonly querySets: number;
}

/** Wraps a device's `create…` and its objects' `destroy`, and returns what is alive now. */
export function countObjects(device: GPUDevice): () => LiveObjects {
  const alive = { createBuffer: new Set<object>(), createTexture: new Set<object>(), createQuerySet: new Set<object>() };
  let bytes = 0;
  for (const [name, set] of Object.entries(alive)) {
    const create = (device[name as keyof typeof alive] as (descriptor: object) => { destroy(): void; size?: number }).bind(device);
    const counted = (descriptor: object) => {
      const made = create(descriptor);
      const size = name === 'createBuffer' ? made.size! : 0;
      set.add(made);
      bytes += size;
      const destroy = made.destroy.bind(made);
      made.destroy = () => {
        if (set.delete(made)) bytes -= size;
        return destroy();
      };
      return made;
    };
    Object.defineProperty(device, name, { value: counted, configurable: true, writable: true });
  }
  return () => ({ buffers: alive.createBuffer.size, bytes, textures: alive.createTexture.size, querySets: alive.createQuerySet.size });
}
