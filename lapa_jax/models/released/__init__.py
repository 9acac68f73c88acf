"""Readers of checkpoints that others released: which of their tensors become which of our parameters."""
