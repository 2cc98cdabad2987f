"""A short probe of the real work on this machine, within a time budget, for the forecast."""
