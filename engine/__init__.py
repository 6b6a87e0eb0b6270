"""Runs exported artifacts on ONNX Runtime; never imports torch or ``mkc_fast.export``."""
