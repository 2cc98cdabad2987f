"""From a recipe to the leaderboard: check, plan, run the cells, write the table."""
