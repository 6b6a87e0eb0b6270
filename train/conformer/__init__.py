"""Trains the conformer that restores centroids to features."""
