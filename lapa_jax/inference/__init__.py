"""Floor 4: trained models put to use: restore, label, measure and look at them."""
