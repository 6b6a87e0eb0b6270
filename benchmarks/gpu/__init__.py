"""``python -m mkc_fast.benchmarks.gpu``: first whether a GPU's results are right, then how fast it is."""
