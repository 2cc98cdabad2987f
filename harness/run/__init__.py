"""A run: its plan, its folder, and what its configuration names, resolved once."""
