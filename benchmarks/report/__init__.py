"""The report of the benchmarks: made of the results that exist, and of nothing else."""

from .document import write

__all__ = ["write"]
