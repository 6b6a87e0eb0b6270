"""Runs over a Ray cluster: what they cost, what they survive, and how large they can be."""
