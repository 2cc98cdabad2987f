"""The respond stage: a checkpoint's answers to a task."""
