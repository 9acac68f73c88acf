"""Action chunks as tokens and back, by rules and by trained models, behind one interface: what is compared in
`lapa_jax.inference.comparison`."""
