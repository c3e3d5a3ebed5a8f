"""The owner's side: the authority's secrets and its ledger."""

from keras_encryip.authority.authority import Authority

__all__ = ["Authority"]
