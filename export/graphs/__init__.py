"""Writes the graphs of the native operators."""
