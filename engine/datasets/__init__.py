"""What goes in and comes out: lists of recordings and Kaldi data directories."""
