"""Models that act: observations to actions."""
