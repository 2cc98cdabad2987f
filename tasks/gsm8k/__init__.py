"""GSM8K: grade-school arithmetic stories, the real data (hub or local files)."""
