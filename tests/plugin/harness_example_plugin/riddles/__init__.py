"""Riddles: to train on, and to be asked."""
