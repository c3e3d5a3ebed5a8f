"""Decoding in an application: numpy and pycryptodome, never TensorFlow or Keras.

>>> from keras_encryip.client import Decoder
>>> decoder = Decoder.open(folder / "digits" / "1", folder / "alice.keybundle", "correct horse")
>>> decoder.labels(confused)
array([7, 2, 1])
"""

from keras_encryip.client.decoder import Decoder
from keras_encryip.client.unlock_key import unlock_key
from keras_encryip.formats.key_bundle import KeyBundle
from keras_encryip.formats.key_pair import X25519PrivateKey, X25519PublicKey
from keras_encryip.formats.sealed_folder import read_sealed, unseal_folder

__all__ = [
    "Decoder",
    "KeyBundle",
    "X25519PrivateKey",
    "X25519PublicKey",
    "read_sealed",
    "unlock_key",
    "unseal_folder",
]
