"""The networks as PyTorch modules, in the form that is exported."""
