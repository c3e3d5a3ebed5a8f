"""An exported model's codebook and users' bundles: see tests/bundles.py."""

from tests.bundles import alice_file, confused, make_authority, world

__all__ = ["alice_file", "confused", "make_authority", "world"]
