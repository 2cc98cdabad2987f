"""Training examples and lm-eval tasks: where their rows come from."""
