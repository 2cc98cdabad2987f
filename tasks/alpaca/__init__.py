"""alpaca: instructions of many kinds with answers, harmless ones."""
