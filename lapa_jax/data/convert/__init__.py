"""Conversion to step shards: a pinned plan, one part per episode, parts packed into shards in order.

The result is a function of the source and the options: a conversion that was killed at any moment and run again ends
with the same bytes as one that ran through.
"""
