/** What `bruit/node` adds to `bruit`: WebGPU through Dawn, adapters, files, data sets and whole training runs. Only Node can load it. */
export { adapterEnvironment, adapterKinds, adapterVariable, parseAdapterKind, reexecWithAdapter, runWithAdapter, type AdapterKind } from './adapter';
export { packageRoot } from './cache';
export { openFolder, type DataFolder } from './case_folder';
export { directory } from './directory';
export { fileSource, openTensorFile } from './file_source';
export { appendJsonl, writeFileAtomic } from './files';
export { createNodeGPU, dawnVariable, requestNodeAdapter } from './gpu';
export { loadCaptionFolder } from './caption_folder';
export { loadImageFolder, type ImageFolderOptions } from './image_folder';
export { loadIdx, loadIdxFolder, loadMnist, readIdx, type DatasetSplit, type MnistOptions } from './mnist';
export { plotMetrics, readMetrics, type MetricsRecord, type PlotOptions } from './plot';
export { writePngFolder } from './png_folder';
export { loadRecipe, type Recipe } from './recipe';
export { listCheckpoints, loadCheckpoint, saveCheckpoint, writeModelFolder } from './run_directory';
export { loadRecipeData, runTraining, type TrainRunOptions, type TrainRunResult } from './train_run';
export { loadTuning, saveTuning, tuningFile } from './tuning_store';
