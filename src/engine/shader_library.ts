/** The snippets that shaders include, by path under shaders/. */
import index from '../../shaders/lib/index.wgsl';
import lanes1 from '../../shaders/lib/lanes_1.wgsl';
import lanes4 from '../../shaders/lib/lanes_4.wgsl';
import pointwise from '../../shaders/lib/pointwise.wgsl';

export const shaderLibrary: Readonly<Record<string, string>> = {
  'lib/index.wgsl': index,
  'lib/lanes_1.wgsl': lanes1,
  'lib/lanes_4.wgsl': lanes4,
  'lib/pointwise.wgsl': pointwise,
};
