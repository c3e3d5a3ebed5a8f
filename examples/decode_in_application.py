"""Decode predictions in an application that has no TensorFlow.

python examples/protect_trained.py FOLDER
python examples/decode_in_application.py FOLDER alice
python examples/decode_in_application.py FOLDER bob
"""

import sys
from pathlib import Path

import numpy as np

from keras_encryip.client import Decoder
from keras_encryip.errors import EncryipError

folder, user = Path(sys.argv[1]), sys.argv[2]
try:
    decoder = Decoder.open(
        folder / "served" / "digits" / "2", folder / f"{user}.keybundle", f"{user}'s secret"
    )
except EncryipError as error:
    sys.exit(f"{user} cannot read this model: {error}")

confused = np.load(folder / "confused.npy")  # in real life: the model server's answer
print("first five:", decoder.names(confused)[:5])
print("accuracy:", (decoder.labels(confused) == np.load(folder / "labels.npy")).mean())
assert "tensorflow" not in sys.modules
