/** The snippets that shaders include, by path under shaders/. */
import index from '../../shaders/lib/index.wgsl';
import pointwise from '../../shaders/lib/pointwise.wgsl';

export const shaderLibrary: Readonly<Record<string, string>> = {
  'lib/index.wgsl': index,
  'lib/pointwise.wgsl': pointwise,
};
