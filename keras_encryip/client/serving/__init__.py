"""Asking a model server, TF Serving or what speaks its protocol, and decoding its answers."""

from keras_encryip.client.serving.client import ServingClient

__all__ = ["ServingClient"]
