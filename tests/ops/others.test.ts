import { describeOps } from '../helpers/describe_ops';

await describeOps('others');
