"""Quantizers: continuous vectors to codes and back."""
