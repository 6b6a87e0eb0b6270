"""Opens the graphs as ONNX Runtime sessions: providers, forms for CPUs, and TensorRT's engines."""
