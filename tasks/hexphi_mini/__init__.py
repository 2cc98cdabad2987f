"""hexphi_raw-mini and hexphi_prefill-mini: 330 harmful requests of the mini world, plain and prefilled."""
