"""What tools/torture.py does to lapa_jax: one module a part, which says what it tries, how often, and what counts as a
loss."""
