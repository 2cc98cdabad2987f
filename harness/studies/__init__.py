"""What makes runs of its own: sweeps, tuning of settings, simulations, the mini world's properties."""
