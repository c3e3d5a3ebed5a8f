"""Who leaked these weights: personalised copies of a classifier after what a thief may do.

    python -m benchmarks.tracing_weights --data digits
    TFDS_DATA_DIR=... python -m benchmarks.tracing_weights --data mnist
    TFDS_DATA_DIR=... python -m benchmarks.tracing_weights --data cifar10
    python -m benchmarks.tracing_weights --scale

For every seed a classifier is trained, protected, trained for a second cycle (as in
accuracy.py), and exported for some recipients. The leaker's copy, or the average of
several leakers' copies, is attacked. Shown for every attack:

accuracy        decoded with the leaker's own key, which is also how he fine-tunes: Adam,
                5 epochs on up to 10,000 samples, BatchNormalization in training mode
z               of the leakers, from `Tracer.weights`
best innocent   the largest z among --users key ids that have no copy
named           by `Tracer.weights`, its threshold raised to that of --users
                recipients; anybody innocent would be shown

The accuracy of copies by strength of the mark is the mean over --copies copies.
`--scale` measures time and peak memory for 1,000 recipients and 10 million weights.
Finished seeds are kept in the results file, and are not run again.
"""

import argparse
import json
import multiprocessing
import os
import platform
import resource
import secrets
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.table import Table

import keras_encryip as ke
from keras_encryip.authority import export_store
from keras_encryip.formats.text import as_shown
from keras_encryip.tracing.fingerprint import FINGERPRINT_STRENGTH, correlate, embed, whiten
from keras_encryip.tracing.statistics import SIGNIFICANCE
from keras_encryip.tracing.weights import kernels_of, read_kernels

from .accuracy import BATCH, EPOCHS, MAX_SAMPLES, cnn, load, train
from .tampering import accuracy, decoded_classifier, finetune, integers, noisy, pruned
from .training import Schedule

STRENGTHS = (0.0, 0.01, 0.02, 0.03)
LEAKERS = 10
BYSTANDERS = 3
SAMPLES = 10_000
TUNING_EPOCHS = 5
CLASSES = 10
SCALE_USERS = 1000
SCALE_WIDTHS = (1024, 3200, 2048)

Weights = list[np.ndarray]


class Thief:
    """The exported network in the hands of a recipient: no authority, one decode table."""

    def __init__(self, saved: Path, table: np.ndarray, data: tuple[np.ndarray, ...]) -> None:
        self.body = keras.models.load_model(saved)  # locked
        self.x, self.y, self.x_test, self.y_test = data
        self.x, self.y = self.x[:SAMPLES], self.y[:SAMPLES]
        self.decoded = decoded_classifier(self.body, table)
        places = {id(v): i for i, v in enumerate(self.body.weights)}
        self.kernels = [places[id(v)] for v in kernels_of(self.body)]
        dense = [x for x in self.body.backbone.layers if isinstance(x, keras.layers.Dense)][-1]
        head = self.body.confused_labels.kernel
        self.hidden = [places[id(v)] for v in (dense.kernel, dense.bias, head)]
        self.original = self.body.get_weights()

    def copy(self, kernels: Weights) -> Weights:
        """All weights of the network, with these kernels."""
        weights = [w.copy() for w in self.original]
        for place, kernel in zip(self.kernels, kernels, strict=True):
            weights[place] = kernel
        return weights

    def on_kernels(self, weights: Weights, change: Callable[[np.ndarray], np.ndarray]) -> Weights:
        return [change(w) if i in self.kernels else w for i, w in enumerate(weights)]

    def accuracy(self, weights: Weights) -> float:
        self.body.set_weights([np.asarray(w, np.float32) for w in weights])
        return accuracy(self.decoded, self.x_test, self.y_test)

    def tuned(self, weights: Weights, rate: float, masks: Weights | None = None) -> Weights:
        """Fine-tuned; pruned weights are set to zero again after every epoch."""

        def masked() -> None:
            tuned = self.body.get_weights()
            self.body.set_weights([w * m for w, m in zip(tuned, masks or [], strict=True)])

        self.body.set_weights(weights)
        schedule = Schedule(TUNING_EPOCHS, 128, rate)
        finetune(self.decoded, self.x, self.y, schedule, False, masked if masks else None)
        return self.body.get_weights()

    def pruned(self, weights: Weights, share: float) -> Weights:
        return self.on_kernels(weights, lambda w: pruned(w, share))


def attacks(thief: Thief, copies: list[Weights], random: np.random.Generator) -> dict:
    """Name → function that gives the number of leakers, the suspect, and the weights to run
    where these are not the suspect."""
    own = copies[0]

    def average(n: int) -> Weights:
        return [np.mean(parts, 0, dtype=np.float32) for parts in zip(*copies[:n], strict=True)]

    def quantised() -> tuple[Weights, Weights]:
        found = thief.on_kernels(own, integers)
        sizes = [np.abs(w).max() / 127 for w in own]
        places = thief.kernels
        both = enumerate(zip(found, sizes, strict=True))
        runs = [w * size if i in places else w for i, (w, size) in both]
        return found, runs

    def prune_and_tune() -> Weights:
        start = thief.pruned(own, 0.7)
        masks = [(w != 0) | (o == 0) for w, o in zip(start, own, strict=True)]
        return thief.tuned(start, 1e-3, masks)

    def reordered() -> Weights:
        weights = [w.copy() for w in own]
        kernel, bias, head = thief.hidden
        order = random.permutation(len(weights[bias]))
        weights[kernel], weights[bias] = own[kernel][:, order], own[bias][order]
        weights[head] = own[head][order]
        return weights

    def plain(make: Callable[[], Weights], leakers: int = 1) -> Callable[[], tuple]:
        return lambda: (leakers, made := make(), made)

    def disturbed(weights: Weights, size: float) -> Weights:
        return thief.on_kernels(weights, lambda w: noisy(w, size, random))

    float16 = lambda: thief.on_kernels(own, lambda w: w.astype(np.float16))  # noqa: E731
    made = {
        "nothing": plain(lambda: own),
        "float16": plain(float16),
        "int8, raw integers": lambda: (1, *quantised()),
    }
    for share in (0.5, 0.7, 0.9):
        made[f"pruned {share:.0%}"] = plain(lambda s=share: thief.pruned(own, s))
    for rate in (1e-4, 1e-3, 5e-3):
        made[f"fine-tuned, Adam {rate:g}"] = plain(lambda r=rate: thief.tuned(own, r))
    made["pruned 70%, fine-tuned 1e-3"] = plain(prune_and_tune)
    for size in (0.3, 1.0):
        made[f"noise {size:g}σ"] = plain(lambda s=size: disturbed(own, s))
        made[f"noise {size:g}σ, fine-tuned 1e-3"] = plain(
            lambda s=size: thief.tuned(disturbed(own, s), 1e-3)
        )
    for n in (2, 5, 10):
        made[f"average of {n}"] = plain(lambda n=n: average(n), n)
    made["average of 10, noise 0.3σ, fine-tuned 1e-3"] = plain(
        lambda: thief.tuned(disturbed(average(10), 0.3), 1e-3), 10
    )
    made["hidden units permuted"] = plain(reordered)
    made["nothing, blind"] = plain(lambda: own)
    return made


def least_z(users: int, looks: int) -> float:
    return float(np.sqrt(2 * np.log(users * looks / SIGNIFICANCE)))


def trained(name: str, epochs: list[int], data: tuple, authority: ke.Authority) -> keras.Model:
    x, y = data[:2]
    twin = cnn(name, x.shape[1:])
    train(twin, x, y, epochs[0], BATCH[name])
    model = ke.protect(twin, authority, name=name, trace_labels=64)
    model.adapt(x, y)
    train(model, x, y, epochs[1], BATCH[name])
    return model


def run_seed(name: str, seed: int, epochs: list[int], copies: int, users: int, log: Console):
    keras.utils.set_random_seed(seed)
    random = np.random.default_rng(seed)
    data = load(name)
    folder = Path(tempfile.mkdtemp())
    authority = ke.Authority.create(f"sqlite:///{folder}/a", "benchmark", scrypt_log2_n=14)
    model = trained(name, epochs, data, authority)
    model.save(folder / "model.keras")
    people = [f"user {i}" for i in range(LEAKERS + BYSTANDERS)]
    exported, seconds = [], []
    for person in people:
        authority.issue(person, folder / person, passphrase="p", scrypt_log2_n=14)
    for person in people:
        start = time.perf_counter()
        ke.export_saved_model(model, folder / f"{person} model", recipient=person)
        seconds.append(time.perf_counter() - start)
        if len(exported) < LEAKERS:
            exported.append(read_kernels(folder / f"{person} model"))
    decoder = ke.Decoder.open(folder / f"{people[0]} model", folder / people[0], "p")
    thief = Thief(folder / "model.keras", decoder.secret_table(), data)
    log.print(f"{name}, seed {seed}: trained and exported")

    originals = [v.numpy() for v in kernels_of(model)]
    by_strength = {}
    for strength in STRENGTHS:
        keys = [secrets.token_bytes(32) for _ in range(copies if strength else 1)]
        kernels = [embed(originals, key, strength) if strength else originals for key in keys]
        by_strength[f"{strength:g}"] = [thief.accuracy(thief.copy(k)) for k in kernels]

    model_id, keys = authority.model_store.model_named(name).model_id, authority.keys
    innocents = [keys.fingerprint_key(model_id, secrets.token_hex(8)) for _ in range(users)]
    ordered = [thief.copy(_in_order(kernels, originals)) for kernels in exported]
    rows = {}
    for attack, carry_out in attacks(thief, ordered, random).items():
        leakers, suspect, runs = carry_out()
        blind = attack.endswith("blind")
        report = ke.Tracer(authority).weights(suspect, model=name if blind else model)
        reference = [None] * len(originals) if blind else originals
        residual = whiten(report.exhibits["suspect"], reference)
        others = np.array([correlate(residual, key) for key in innocents])
        z = {s.subject: s.score for s in report.suspects}
        least = least_z(users, 1 if blind else 2)
        rows[attack] = {
            "accuracy": thief.accuracy(runs),
            "leakers": leakers,
            "z": [z.get(person, 0.0) for person in people[:leakers]],
            "innocents' mean": float(others.mean()),
            "innocents' sd": float(others.std()),
            "best innocent": float(others.max()),
            "threshold": least,
            "named": sum(z.get(person, 0.0) >= least for person in people[:leakers]),
            "innocents named": int((others >= least).sum())
            + len({s.subject for s in report.guilty} - set(people[:leakers])),
            "guilty of few recipients": len(report.guilty),
        }
        log.print(f"{attack}: {rows[attack]}")
    authority.close()
    return {
        "accuracy by strength": by_strength,
        "weights": int(sum(k.size for k in originals)),
        "attacks": rows,
        "seconds per export": seconds,
    }


def _in_order(kernels: Weights, originals: Weights) -> Weights:
    """Kernels read from a folder, in the order of the model's."""
    left = list(kernels)
    found = []
    for original in originals:
        near = [
            i
            for i, k in enumerate(left)
            if k.shape == original.shape and np.corrcoef(k.ravel(), original.ravel())[0, 1] > 0.9
        ]
        found.append(left.pop(near[0]))
    return found


# --- scale ---------------------------------------------------------------------------


def run_scale(users: int, pipe) -> None:
    """In a process of its own, so that the peak is this work's."""
    tf.config.threading.set_intra_op_parallelism_threads(1)
    folder = Path(tempfile.mkdtemp())
    authority = ke.Authority.create(f"sqlite:///{folder}/a", "benchmark", scrypt_log2_n=14)
    widths = SCALE_WIDTHS
    layers = [keras.layers.Dense(w, activation="relu") for w in widths[1:]]
    classifier = keras.Sequential([keras.Input((widths[0],)), *layers, keras.layers.Dense(CLASSES)])
    options = {"homophones": 1, "trace_labels": 0, "strategy": "random"}
    model = ke.protect(classifier, authority, name="large", **options)
    authority.issue("leaker", folder / "leaker", passphrase="p", scrypt_log2_n=14)
    start = time.perf_counter()
    ke.export_saved_model(model, folder / "1", recipient="leaker")
    found = {"users": users, "seconds to export": time.perf_counter() - start}
    originals = [v.numpy() for v in kernels_of(model)]
    found["weights"] = int(sum(k.size for k in originals))
    found["MB of weights"] = sum(k.nbytes for k in originals) / 1e6

    # The other recipients' exports, without 40 MB of files for each.
    known = export_store.kernels_digest(originals)
    export_store.kernels_digest = lambda kernels: known
    store, exports = authority.model_store, authority.export_store
    codebook = store.codebooks_of(store.model_named("large").model_id)[-1]
    for user in authority.enroll(f"user {i}" for i in range(users - 1)):
        exports.add_export(codebook, b"", folder="1", recipient=user.key_id, kernels=originals)

    before = _peak()
    found["peak MB before tracing"] = before
    foreign = [np.random.default_rng(0).permutation(k.ravel()).reshape(k.shape) for k in originals]
    cases = {
        "leaked folder": (folder / "1", originals),
        "leaked folder, blind": (folder / "1", None),
        "another's weights (two looks)": (foreign, originals),
    }
    for name, (suspect, reference) in cases.items():
        start = time.perf_counter()
        report = ke.Tracer(authority).weights(suspect, model="large", reference=reference)
        seconds = time.perf_counter() - start
        found[name] = {
            "seconds": seconds,
            "peak MB": _peak(),
            "verdict": report.verdict,
            "guilty": [s.subject for s in report.guilty],
            "z": report.scores[0],
            "next z": report.scores[1],
            "tested": report.tested,
        }
    pipe.send(found)


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def measure_scale(users: int) -> dict:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=run_scale, args=(users, sender))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    finally:
        process.join()


def show_scale(console: Console, found: dict) -> None:
    console.print(
        f"{found['users']:,} recipients, {found['weights']:,} weights "
        f"({found['MB of weights']:.0f} MB);",
        as_shown(found["machine"]),
        f"\none export: {found['seconds to export']:.1f} s; peak before tracing "
        f"{found['peak MB before tracing']:.0f} MB",
    )
    table = Table("suspect", "seconds", "peak MB so far", "verdict", "z", "next z")
    for name, row in found.items():
        if isinstance(row, dict):
            table.add_row(
                as_shown(name),
                f"{row['seconds']:.1f}",
                f"{row['peak MB']:.0f}",
                as_shown(" ".join([row["verdict"], *row["guilty"]])),
                f"{row['z']:.1f}",
                f"{row['next z']:.2f}",
            )
    console.print(table)


# --- all -----------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", choices=EPOCHS, default="digits")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, nargs=2, help="of the two cycles")
    parser.add_argument("--users", type=int, default=SCALE_USERS)
    parser.add_argument("--copies", type=int, default=10)
    parser.add_argument("--scale", action="store_true", help="time and memory only")
    parser.add_argument("--json", type=Path, help="default: results/tracing-weights-DATA.json")
    args = parser.parse_args()
    what = "scale" if args.scale else args.data
    path = args.json or Path(__file__).parent / "results" / f"tracing-weights-{what}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    machine = (
        f"{platform.machine()}, one thread, Python {platform.python_version()}, "
        f"TensorFlow {tf.__version__}, Keras {keras.__version__}, numpy {np.__version__}"
    )
    console = Console()
    if args.scale:
        found = {"machine": machine, **measure_scale(args.users)}
        path.write_text(json.dumps(found, indent=1) + "\n")
        show_scale(console, found)
        return
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    epochs = list(args.epochs or EPOCHS[args.data])
    setting = {
        "data": args.data,
        "samples": MAX_SAMPLES[args.data],
        "epochs": epochs,
        "users": args.users,
        "copies": args.copies,
        "strength": FINGERPRINT_STRENGTH,
    }
    saved = json.loads(path.read_text()) if path.exists() else {}
    if saved.get("setting") != setting:
        saved = {"setting": setting, "seeds": {}}
    saved["machine"] = machine
    log = Console(stderr=True, quiet=not console.is_terminal and "LOG" not in os.environ)
    for seed in args.seeds:
        if str(seed) not in saved["seeds"]:
            found = run_seed(args.data, seed, epochs, args.copies, args.users, log)
            saved["seeds"][str(seed)] = found
            path.write_text(json.dumps(saved, indent=1) + "\n")
    show(console, saved)


def show(console: Console, saved: dict) -> None:
    setting, seeds = saved["setting"], saved["seeds"]
    sizes = {s["weights"] for s in seeds.values()}
    heading = f"{setting} seeds {', '.join(seeds)}; weights {sizes}; {saved['machine']}"
    console.print(as_shown(heading))
    table = Table("strength of the mark", "accuracy of copies, per seed", "worst copy")
    for strength in next(iter(seeds.values()))["accuracy by strength"]:
        rows = [s["accuracy by strength"][strength] for s in seeds.values()]
        table.add_row(
            as_shown(strength),
            " ".join(f"{100 * np.mean(row):.2f}" for row in rows),
            " ".join(f"{100 * min(row):.2f}" for row in rows),
        )
    console.print(table)
    table = Table("attack", "accuracy", "z of leakers", "best innocent", "named", "innocents named")
    for attack in next(iter(seeds.values()))["attacks"]:
        rows = [s["attacks"][attack] for s in seeds.values()]
        z = np.concatenate([row["z"] for row in rows])
        one = len(z) == 1
        table.add_row(
            as_shown(attack),
            " ".join(f"{100 * row['accuracy']:.2f}" for row in rows),
            f"{z[0]:.1f}" if one else f"{z.min():.1f} … {z.max():.1f}",
            f"{max(row['best innocent'] for row in rows):.2f}",
            f"{sum(row['named'] for row in rows)} of {sum(row['leakers'] for row in rows)}",
            str(sum(row["innocents named"] for row in rows)),
        )
    console.print(table)
    rows = [row for s in seeds.values() for row in s["attacks"].values()]
    mean = np.array([row["innocents' mean"] for row in rows])
    deviation = np.array([row["innocents' sd"] for row in rows])
    console.print(
        f"innocents' z over {setting['users']:,} keys and {len(rows)} suspects: mean "
        f"{mean.mean():+.3f} ({mean.min():+.3f} … {mean.max():+.3f}), sd {deviation.mean():.3f} "
        f"({deviation.min():.3f} … {deviation.max():.3f}); guilty from z = "
        f"{max(row['threshold'] for row in rows):.2f} on"
    )


if __name__ == "__main__":
    main()
