"""Mappings of environments of gymnasium, see `lapa_jax.sim.gym_map`; a file here is found by its `envs`."""
