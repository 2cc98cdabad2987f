"""Names of methods, train tasks, judges and engines, and the code behind them."""
