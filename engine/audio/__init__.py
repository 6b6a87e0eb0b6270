"""Reads and writes audio files."""
