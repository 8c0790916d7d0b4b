"""Reverse-mode gradients of ONNX graphs, as ONNX graphs."""
