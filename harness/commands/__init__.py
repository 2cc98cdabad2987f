"""The commands, one file a family; the imports are light (click), the work is imported when it is called."""
