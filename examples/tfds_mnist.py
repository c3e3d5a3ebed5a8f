"""Train, protect and fit on MNIST from TensorFlow Datasets.

TFDS_DATA_DIR=... python examples/tfds_mnist.py FOLDER [EPOCHS]
"""

import os
import sys
from pathlib import Path

import keras
import tensorflow as tf
import tensorflow_datasets as tfds

import keras_encryip as ke

folder = Path(sys.argv[1])
epochs = int(sys.argv[2]) if len(sys.argv) > 2 else 3
folder.mkdir(parents=True)
train, test = tfds.load(
    "mnist", split=["train", "test"], data_dir=os.environ.get("TFDS_DATA_DIR"), as_supervised=True
)


def scaled(image, label):
    return tf.cast(image, tf.float32) / 255, label


train = train.map(scaled).cache().shuffle(10_000).batch(128).prefetch(2)
test = test.map(scaled).batch(500)

classifier = keras.Sequential(
    [
        keras.Input((28, 28, 1)),
        keras.layers.Conv2D(16, 3, activation="relu"),
        keras.layers.MaxPooling2D(),
        keras.layers.Conv2D(32, 3, activation="relu"),
        keras.layers.MaxPooling2D(),
        keras.layers.Flatten(),
        keras.layers.Dense(128, activation="relu"),
        keras.layers.Dense(10),
    ]
)
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
classifier.compile("adam", loss, metrics=["accuracy"])
classifier.fit(train, epochs=epochs, verbose=2)

authority = ke.Authority.create(folder / "acme.authority", passphrase="owner's secret")
model = ke.protect(classifier, authority, name="mnist")
model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])  # probabilities
model.fit(train, epochs=epochs, validation_data=test, verbose=2)
ke.export_saved_model(model, folder / "served" / "mnist" / "1")
