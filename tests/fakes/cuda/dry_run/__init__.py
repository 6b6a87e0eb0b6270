"""A CUDA device that computes nothing: stub libraries that the real CUDA provider of ONNX Runtime and CuPy run over."""
