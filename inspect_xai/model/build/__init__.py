"""From a bare .onnx file to a bundle: load, normalize, find blocks, derive graphs, verify."""
