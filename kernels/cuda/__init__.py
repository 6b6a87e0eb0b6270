"""What runs on a CUDA device besides the look-up: the device itself, and rows of a batch."""
