"""Layers: attention, the transformer stack, feed-forward, positions, patches, convolutions, losses, quantizers."""
