"""overrefusal-mini: harmless how-to requests of the mini world."""
