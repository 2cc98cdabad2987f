"""Checkpoints: found, checked, loaded, saved; and conversations as their token ids."""
