"""From verdicts to the leaderboard: scores, statistics, tables and their files."""
