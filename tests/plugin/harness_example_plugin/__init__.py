"""What a package outside the harness adds to it: see pyproject.toml for the entry points."""
