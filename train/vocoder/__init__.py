"""Trains the vocoder that makes speech of features."""
