"""The evidence: what the protection is worth, measured. `python -m benchmarks` runs it."""
