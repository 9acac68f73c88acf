"""Closed-loop environments with oracles. Needs the extra `lapa_jax[sim]` (MuJoCo)."""
