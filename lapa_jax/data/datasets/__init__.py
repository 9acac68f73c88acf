"""Readers of foreign formats: one file a format."""
