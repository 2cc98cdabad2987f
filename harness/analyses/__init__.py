"""What can be asked of runs beyond their leaderboard: ``harness analyze``, ``sweep``, ``tune``, ``agreement``
and ``simulate``. The walk knows nothing of them."""
