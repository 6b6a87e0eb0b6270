"""The baseline: PyTorch modules and scikit-learn, one utterance at a time."""
