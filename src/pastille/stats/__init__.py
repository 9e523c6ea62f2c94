"""Statistics of judging: what a split can and cannot tell. Pure functions of numpy arrays, no torch."""
