"""The evidence: what the protection is worth, measured. `encryip bench` runs it."""
