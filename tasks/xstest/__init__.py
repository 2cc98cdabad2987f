"""xstest: harmless requests that sound harmful, and harmful ones. Nothing of them is in this repository."""
