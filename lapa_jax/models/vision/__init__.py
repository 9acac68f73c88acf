"""Vision towers: pictures to features of patches."""
