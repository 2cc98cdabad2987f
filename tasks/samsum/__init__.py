"""samsum: dialogues from a messenger, each with a short summary."""
