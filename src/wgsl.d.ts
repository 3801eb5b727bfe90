declare module '*.wgsl' {
  /** Source text of the shader. */
  const source: string;
  export default source;
}
