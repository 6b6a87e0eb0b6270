"""Graphs in float16 and in 8-bit integers."""
