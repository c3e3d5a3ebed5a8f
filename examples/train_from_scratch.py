"""Protect a fresh classifier and train it: python examples/train_from_scratch.py FOLDER"""

import sys
from pathlib import Path

import keras
from sklearn.datasets import load_digits

import keras_encryip as ke

folder = Path(sys.argv[1])
folder.mkdir(parents=True)
images, labels = load_digits(return_X_y=True)
images = (images / 16).astype("float32").reshape(-1, 8, 8, 1)

# Any Keras classifier that ends in Dense(classes).
classifier = keras.Sequential(
    [
        keras.Input((8, 8, 1)),
        keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
        keras.layers.MaxPooling2D(),
        keras.layers.Flatten(),
        keras.layers.Dense(64, activation="relu"),
        keras.layers.Dense(10, activation="softmax"),
    ]
)

# In production the passphrases come from a vault, not from source code.
authority = ke.Authority.create(folder / "acme.authority", passphrase="owner's secret")
model = ke.protect(classifier, authority, name="digits", class_names=[str(n) for n in range(10)])
model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
stop = keras.callbacks.EarlyStopping(patience=5, restore_best_weights=True)
model.fit(images, labels, validation_split=0.2, epochs=20, callbacks=[stop], verbose=2)

ke.export_saved_model(model, folder / "served" / "digits" / "1")
authority.issue("alice", folder / "alice.keybundle", passphrase="alice's secret")
print(f"Exported {folder}/served/digits/1 and issued {folder}/alice.keybundle.")
