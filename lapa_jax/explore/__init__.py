"""A local page on which a trained model is tried by hand: its codes on frames, its predictions on instructions."""
