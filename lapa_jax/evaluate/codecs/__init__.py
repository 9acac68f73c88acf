"""Action chunks as tokens and back, by rules and by trained models, behind one interface; compared in
`lapa_jax.evaluate.codecs.comparison`."""
