"""What reaches a terminal or a notebook: progress, lines, columns."""
