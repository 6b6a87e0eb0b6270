"""Reads the published checkpoints without executing anything in them."""
