"""The nearest centroid of each frame: the interface, and its forms in NumPy and CuPy."""
