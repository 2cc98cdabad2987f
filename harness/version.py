"""The version of the distribution: kept in each run's record."""

__version__ = "0.1.0"
