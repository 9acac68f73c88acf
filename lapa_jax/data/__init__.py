"""Data for every stage: step shards on disk, sources over them, and a loader that is a function of the step.

Nothing here imports jax: loader threads and conversion workers import these modules.
"""
