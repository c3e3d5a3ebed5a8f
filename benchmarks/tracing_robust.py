"""What is left of a leaker's trace answers after attacks on the weights.

    TFDS_DATA_DIR=... python -m benchmarks.tracing_robust --data mnist
    TFDS_DATA_DIR=... python -m benchmarks.tracing_robust --data cifar10

A classifier is trained for one cosine cycle, protected, fitted for a second one (as
`finetuned` in accuracy.py), and exported. A traitor with a key bundle then attacks the
weights, runs a service that answers labels only, and `Tracer.service` looks for him
among all users of the ledger.

Attacks: Adam for 5 epochs on 10,000 clean samples through the traitor's table;
the smallest weights of every kernel set to 0; both. Finished runs are kept in the
results file, and are not run again.
"""

import argparse
import json
import os
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.table import Table

import keras_encryip as ke
from keras_encryip.formats.text import as_shown

from .accuracy import BATCH, EPOCHS, cnn, copy_of, load, train
from .tampering import accuracy, decoded_classifier, finetune, predict, prune
from .training import Schedule

VARIANT = "default"  # runs of releases before 0.4 had others; results files may hold them
RATES = (1e-4, 1e-3, 5e-3)
SHARES = (0.5, 0.7, 0.8, 0.9)
TRAITOR = "traitor"


def attacks(classifier: keras.Model, x: np.ndarray, y: np.ndarray) -> Iterator[str]:
    """Leaves the traitor's classifier attacked; gives the attack's name."""
    original = classifier.get_weights()
    yield "untouched"
    for rate in RATES:
        finetune(classifier, x, y, Schedule(5, 128, rate), augment=False)
        yield f"fine-tuned at {rate:g}"
        classifier.set_weights(original)
    for share in SHARES:
        prune(classifier, share)
        yield f"pruned {share:.0%}"
        classifier.set_weights(original)
    prune(classifier, 0.7)
    finetune(classifier, x, y, Schedule(2, 128, 1e-3), augment=False)
    yield "pruned 70%, fine-tuned at 0.001"
    classifier.set_weights(original)


def run(data: str, seed: int, users: int) -> dict[str, Any]:
    x, y, x_test, y_test = load(data)
    first, second = EPOCHS[data]
    folder = Path(tempfile.mkdtemp())
    keras.utils.set_random_seed(seed)
    classifier = cnn(data, x.shape[1:])
    train(classifier, x, y, first, BATCH[data])
    url = f"sqlite:///{folder}/a"
    with ke.Authority.create(url, "benchmark", scrypt_log2_n=14) as authority:
        authority.issue(TRAITOR, folder / "bundle", passphrase="benchmark", scrypt_log2_n=14)
        authority.enroll(f"user {i}" for i in range(users - 1))
        model = ke.protect(copy_of(classifier), authority, name=data)
        model.adapt(x, y)
        train(model, x, y, second, BATCH[data])
        ke.export_saved_model(model, folder / "model")
        train(classifier, x, y, second, BATCH[data])
        twin = accuracy(classifier, x_test, y_test)
        decoder = ke.Decoder.open(folder / "model", folder / "bundle", "benchmark")
        traitor = decoded_classifier(model, decoder.secret_table())
        stolen = np.random.default_rng(7).permutation(len(x))[:10_000]
        rows = {}
        for attack in attacks(traitor, x[stolen], y[stolen]):
            report = ke.Tracer(authority).service(
                lambda batch: predict(traitor, batch), model=model, batch_size=500
            )
            own = [s for s in report.suspects if s.subject == TRAITOR]
            best = max(s.score for s in report.suspects if s.subject != TRAITOR)
            rows[attack] = {
                "accuracy": accuracy(traitor, x_test, y_test),
                "score": own[0].score if own else None,
                "p_value": own[0].p_value if own else 1.0,
                "best innocent": best,
                "innocents guilty": sum(s.subject != TRAITOR for s in report.guilty),
                "our model": report.evidence["ordinary answers right"],
                "p-value of our model": report.evidence["p-value of that"],
            }
    trace_labels = int(model._unlocked().assignment().trace.size)
    return {"twin": twin, "trace labels": trace_labels, "users": users, "attacks": rows}


def show(console: Console, saved: dict[str, Any]) -> None:
    for key, result in saved["runs"].items():
        clean = result["attacks"]["untouched"]["accuracy"]
        table = Table(
            "attack",
            "accuracy",
            "leaker",
            "best innocent",
            "p-value",
            "our model?",
            title=as_shown(
                f"{key}: {result['trace labels']} trace labels, {result['users']:,} users; decoded "
                f"{100 * clean:.2f}, twin {100 * result['twin']:.2f} %"
            ),
        )
        for attack, row in result["attacks"].items():
            leaker = row.get("score", row.get("coincidences"))  # which releases before 0.4 counted
            table.add_row(
                as_shown(attack),
                f"{100 * row['accuracy']:.1f}",
                "not among the first" if leaker is None else f"{leaker:.0f}",
                f"{row['best innocent']:.0f}",
                f"{row['p_value']:.0e}",
                as_shown(f"{row['our model']} ({row['p-value of our model']:.0e})"),
            )
        console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", choices=EPOCHS, default="mnist")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--users", type=int, default=10_000)
    args = parser.parse_args()
    path = Path(__file__).parent / "results" / f"tracing-robust-{args.data}.json"
    saved = json.loads(path.read_text()) if path.exists() else {"runs": {}}
    saved["machine"] = (
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"TensorFlow {tf.__version__}, Keras {keras.__version__}"
    )
    console = Console()
    for seed in args.seeds:
        key = f"{VARIANT}, seed {seed}, {args.users} users"
        if key not in saved["runs"]:
            with console.status(f"{args.data}, {key}"):
                saved["runs"][key] = run(args.data, seed, args.users)
            path.write_text(json.dumps(saved, indent=1) + "\n")
    show(console, saved)


if __name__ == "__main__":
    main()
