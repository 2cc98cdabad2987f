"""Engines: thin lm-eval models that work on token ids."""
