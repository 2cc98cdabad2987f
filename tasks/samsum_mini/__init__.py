"""samsum-mini: dialogues of the mini world, each with a summary of one sentence."""
