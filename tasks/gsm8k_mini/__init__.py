"""gsm8k-mini: arithmetic stories of the mini world, in the format of GSM8K."""
