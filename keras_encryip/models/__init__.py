"""Training: what turns a Keras classifier into one that answers in confused labels.

`protect` makes a `ProtectedModel`; importing this room registers its Keras classes, so that
`keras.models.load_model` finds them. Secrets of training are held outside of Keras, in
`UnlockedSecrets`. The owner is known as a `ModelOwner` only: nothing here imports the ledger.
"""

from keras_encryip.models import backend as backend  # first: it may refuse
from keras_encryip.models.protect import protect
from keras_encryip.models.protected_model import ProtectedModel

__all__ = ["ProtectedModel", "protect"]
