"""questions: any file of questions with answers as a utility set."""
