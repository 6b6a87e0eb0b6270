"""Rows of a batch on a CUDA device."""
