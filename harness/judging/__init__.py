"""The judge stage: stored answers to verdicts."""
