"""What makes runs of its own: sweeps, search for settings, simulations, the mini world's properties."""
