"""What an outsider gets from a protected model with a few labelled samples.

    python benchmarks/outsider.py --data digits
    TFDS_DATA_DIR=... python benchmarks/outsider.py --data mnist

The outsider has the exported weights, no key, and n labelled samples per class
from the training data. Attacks, each with its best setting *on the test set*, which
favours the outsider:

labels     every confused label gets the class that the labelled samples put on it,
           spread to labels whose head columns are near (several bandwidths)
grouping   the head's columns are clustered (Ward); a cluster gets its samples' class
probe      logistic regression on the features below the head

Beside them, the same network trained from scratch on the same samples, which needs no
model at all; and the best attack on the unprotected classifier whose K outputs are
merely permuted, which shows what a secret numbering alone is worth.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from accuracy import BATCH, EPOCHS, cnn, load, train
from rich.console import Console
from rich.table import Table
from scipy.spatial.distance import cdist
from sklearn.cluster import AgglomerativeClustering
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score
from sklearn.preprocessing import StandardScaler

import keras_encryip as ke
from keras_encryip.models import ProtectedModel

CLASSES = 10
ATTACKS = ("labels", "grouping", "probe")


def columns(model: ProtectedModel) -> np.ndarray:
    head = model.confused_labels
    return np.column_stack([head.kernel.numpy().T, head.bias.numpy()])


def read(scores: np.ndarray, confused: np.ndarray, y: np.ndarray) -> float:
    """Accuracy of decoding with class scores `[N, K]`, each label's normalised."""
    weights = scores / np.maximum(scores.sum(1, keepdims=True), 1e-12)
    return float(((confused @ weights).argmax(-1) == y).mean())


def attack_labels(model, seen, y_seen, confused, y) -> float:
    mass = seen.T @ np.eye(CLASSES)[y_seen]
    distances = cdist(columns(model), columns(model), "sqeuclidean")
    scale = np.median(np.partition(distances, 5, axis=1)[:, 5])
    best = read(mass, confused, y)
    for bandwidth in (0.1, 0.2, 0.4, 0.8, 1.6):
        best = max(best, read(np.exp(-distances / (bandwidth * scale)) @ mass, confused, y))
    return best


def attack_grouping(model, seen, y_seen, confused, y) -> float:
    mass = seen.T @ np.eye(CLASSES)[y_seen]
    found, points = 0.0, columns(model)
    for clusters in (CLASSES, CLASSES + 1, 2 * CLASSES, 4 * CLASSES):
        group = AgglomerativeClustering(min(clusters, len(points))).fit_predict(points)
        member = np.eye(group.max() + 1)[group]
        found = max(found, read(member @ (member.T @ mass), confused, y))
    return found


def attack_probe(model, seen, y_seen, features, y) -> float:
    scaler = StandardScaler().fit(features)
    return max(
        float(
            LogisticRegression(C=c, max_iter=500)
            .fit(scaler.transform(seen), y_seen)
            .score(scaler.transform(features), y)
        )
        for c in (0.01, 0.1, 1.0)
    )


def from_scratch(name, x_seen, y_seen, x, y) -> float:
    keras.utils.set_random_seed(0)
    model = cnn(name, x.shape[1:])
    # Enough steps for BatchNormalization's running statistics to settle.
    train(model, x_seen, y_seen, 1000 // -(-len(x_seen) // 32), 32)
    return float(model.evaluate(x, y, batch_size=500, verbose=0)[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", choices=EPOCHS, default="digits")
    parser.add_argument("--samples", type=int, nargs="+", default=[1, 5, 20])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    x, y, x_test, y_test = load(args.data)
    (first, second), batch = EPOCHS[args.data], BATCH[args.data]
    folder = tempfile.mkdtemp()
    authority = ke.Authority.create(f"sqlite:///{folder}/a", "benchmark", scrypt_log2_n=14)
    keras.utils.set_random_seed(0)
    classifier = cnn(args.data, x.shape[1:])
    train(classifier, x, y, first, batch)
    models = {
        "permuted only": ke.protect(
            classifier, authority, name="permuted", homophones=1, trace_labels=0, teacher=False
        ),
        "finetuned": ke.protect(classifier, authority, name="finetuned"),
        "scratch": ke.protect(cnn(args.data, x.shape[1:]), authority, name="scratch"),
    }
    models["permuted only"].confusion_weight = 0.0
    for name, model in models.items():
        model.adapt(x, y)
        for epochs in (first, second) if name == "scratch" else (second,):
            train(model, x, y, epochs, batch)

    random = np.random.default_rng(0)
    rows: dict[str, dict[str, float]] = {}
    for n in args.samples:
        chosen = np.concatenate(
            [random.choice(np.flatnonzero(y == k), n, replace=False) for k in range(CLASSES)]
        )
        rows[f"n = {n}: from scratch"] = {
            "": from_scratch(args.data, x[chosen], y[chosen], x_test, y_test)
        }
        for name, model in models.items():
            seen = model.predict(x[chosen], verbose=0)
            confused = model.predict(x_test, batch_size=500, verbose=0)
            features = [
                keras.ops.convert_to_numpy(model.backbone(part, training=False))
                for part in (x[chosen], x_test)
            ]
            rows[f"n = {n}: {name}"] = {
                "labels": attack_labels(model, seen, y[chosen], confused, y_test),
                "grouping": attack_grouping(model, seen, y[chosen], confused, y_test),
                "probe": attack_probe(model, features[0], y[chosen], features[1], y_test),
            }
    console = Console()
    table = Table(args.data, "best", "labels", "grouping", "probe")
    for name, found in rows.items():
        cells = [f"{100 * found[a]:.1f}" if a in found else "" for a in ATTACKS]
        table.add_row(name, f"{100 * max(found.values()):.1f}", *cells)
    console.print(table)
    groupings = {}
    for name in ("finetuned", "scratch"):
        model = models[name]
        assignment = model._unlocked().assignment()
        real = assignment.labels.reshape(-1)
        group = AgglomerativeClustering(CLASSES).fit_predict(columns(model)[real])
        groupings[name] = adjusted_rand_score(assignment.classes[real], group)
        accuracy = model.evaluate(x_test, y_test, batch_size=500, verbose=0)[1]
        console.print(
            f"{name}: decoded accuracy {100 * accuracy:.2f}; the head's real columns, clustered "
            f"into {CLASSES}, agree with the classes to an adjusted Rand index of "
            f"{groupings[name]:.2f} (1: all groups recovered, but none of them named)"
        )
    if args.json:
        args.json.write_text(json.dumps({"attacks": rows, "grouping": groupings}, indent=1) + "\n")


if __name__ == "__main__":
    main()
