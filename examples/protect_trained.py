"""Protect a classifier that is trained already: python examples/protect_trained.py FOLDER

The recommended way: the protected model goes on with the classifier's own layers, and learns
from what the classifier answered until then. Copy a classifier that is needed as it is.
The folder then holds all that examples/decode_in_application.py needs.
"""

import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

import keras_encryip as ke

folder = Path(sys.argv[1])
folder.mkdir(parents=True)
images, labels = load_digits(return_X_y=True)
images = (images / 16).astype("float32").reshape(-1, 8, 8, 1)
train, test = slice(0, 1400), slice(1400, None)

inputs = keras.Input((8, 8, 1))
features = keras.layers.Conv2D(32, 3, padding="same", activation="relu")(inputs)
features = keras.layers.Flatten()(keras.layers.MaxPooling2D()(features))
features = keras.layers.Dense(64, activation="relu")(features)
classifier = keras.Model(inputs, keras.layers.Dense(10, activation="softmax")(features))
classifier.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
classifier.fit(images[train], labels[train], epochs=15, verbose=0)
print("original  accuracy", classifier.evaluate(images[test], labels[test], verbose=0)[1])

authority = ke.Authority.create(folder / "acme.authority", passphrase="owner's secret")
model = ke.protect(classifier, authority, name="digits", class_names=[str(n) for n in range(10)])
model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
model.fit(images[train], labels[train], epochs=10, verbose=0)
print("protected accuracy", model.evaluate(images[test], labels[test], verbose=0)[1])
model.save(folder / "digits.keras")  # locked: it holds no secret

for user in ("alice", "bob"):
    authority.issue(user, folder / f"{user}.keybundle", passphrase=f"{user}'s secret")
ke.export_saved_model(model, folder / "served" / "digits" / "1")

# Bob leaves: the next export shuts him out. Alice's key stays as it is.
authority.revoke("bob")
ke.export_saved_model(model, folder / "served" / "digits" / "2")

# What a server answers, as the application will see it.
served = tf.saved_model.load(str(folder / "served" / "digits" / "2"))
confused = served.signatures["serving_default"](tf.constant(images[test]))["confused"].numpy()
np.save(folder / "confused.npy", confused)
np.save(folder / "labels.npy", labels[test])
