// The package's `main` is CommonJS in a package of type module, which Node refuses; the ESM build is imported by its file name.
declare module 'wgsl_reflect/wgsl_reflect.module.js' {
  export * from 'wgsl_reflect';
}
