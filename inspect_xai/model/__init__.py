"""Everything ONNX: model bundles, graph surgery, gradients and the engine that runs them."""
