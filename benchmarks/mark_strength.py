"""How weak a recipient's mark may be: what it costs in accuracy, and what is left of its proof.

    TFDS_DATA_DIR=... python -m benchmarks.mark_strength --data cifar10 --network resnet20
    TFDS_DATA_DIR=... python -m benchmarks.mark_strength --data cifar10 --network small
    TFDS_DATA_DIR=... python -m benchmarks.mark_strength --data mnist
    python -m benchmarks.mark_strength --data digits

For every seed a classifier is protected with the defaults and trained as in sizes.py. For every
strength of the mark:

traced       z of the leaker, from his copy as it was exported, and from raw 8-bit integers made
             of it; the smallest z of ten leakers, from the average of their copies
fine-tuned   z from his copy after 5 epochs of Adam at 1e-3 on 10,000 clean samples in batches of
             128, without augmentation, BatchNormalization in training mode
disturbed    the same after noise of 0.3 standard deviations of each kernel
divergence   of ten copies' classes from the unmarked network's, Kullback–Leibler, in nats, on 1,000
             test inputs; and of copies with this strength in every kernel, whatever its size
copies       accuracy of ten marked copies, decoded, on the whole test set

z is that of `whiten` and `correlate` with the original at hand, as `Tracer.weights` computes it if
the strength is the default.
Finished cells are kept in the results file, and are not run again. With --keep FOLDER the trained
networks are kept, too, so that an interrupted run goes on with the same ones.
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import keras
import numpy as np
from rich.table import Table

from keras_encryip.labels.assignment import TRACE
from keras_encryip.tracing.fingerprint import correlate, embed, kernels_digest, noise, whiten
from keras_encryip.tracing.weights import kernels_of

from .backbones import build, conv_norm, small_cnn
from .cells import RESULTS, Cells, console
from .data import CLASSES, Data, load
from .sizes import NIGHTLY, QUICK, Size
from .tampering import Decode, accuracy, finetune, integers, noisy, predict
from .training import Schedule
from .trainings import DEFAULTS, Trainings

STRENGTHS: Final = (0.003, 0.004, 0.006, 0.01, 0.015, 0.02, 0.03)
SIZES: Final = {size.data: size for size in (*QUICK, *NIGHTLY)}
NETWORKS: Final = ("small", "resnet20")
PARTS: Final = ("traced", "fine-tuned", "copies", "disturbed", "divergence")
COPIES: Final = 10
THIEF: Final = Schedule(5, 128, 1e-3)
NOISE: Final = 0.3

Weights = list[np.ndarray]


def network(name: str, data: str, shape: tuple[int, ...]) -> keras.Model:
    """A fresh classifier; ResNet-20 is for CIFAR-10 alone."""
    if name == "resnet20" or data != "cifar10":
        return build(data, shape)
    inputs = keras.Input(shape)
    features = small_cnn(inputs, data, conv_norm)
    outputs = keras.layers.Dense(CLASSES, activation="softmax", name="head")(features)
    return keras.Model(inputs, outputs, name=data)


class Small(Trainings):
    """Trainings of the small CNN, also on CIFAR-10."""

    def build(self) -> keras.Model:
        return network("small", self.size.data, self.data.x.shape[1:])


class Leaker:
    """The exported network in the hands of a recipient, who decodes it with a key.

    Args:
        body: inputs → confused labels, of the network's architecture.
        weights: of the trained, unmarked network.
        table: int `[N]`, the key's class of each confused label.
    """

    def __init__(self, body: keras.Model, weights: Weights, table: np.ndarray) -> None:
        self.classifier = keras.Model(body.inputs, Decode(table, CLASSES)(body.outputs[0]))
        self.classifier.set_weights(weights)
        self.variables = kernels_of(self.classifier)
        self.unmarked = weights
        self.originals = self.kernels()

    def kernels(self) -> Weights:
        return [keras.ops.convert_to_numpy(variable) for variable in self.variables]

    def load(self, kernels: Weights) -> keras.Model:
        """The classifier with these kernels; all else is as it was trained."""
        self.classifier.set_weights(self.unmarked)
        for variable, kernel in zip(self.variables, kernels, strict=True):
            variable.assign(kernel)
        return self.classifier

    def z(self, kernels: Weights, keys: Sequence[bytes], strength: float) -> list[float]:
        residual = whiten(kernels, self.originals, strength)
        return [correlate(residual, key) for key in keys]


def embed_equally(kernel: np.ndarray, key: bytes, index: int, strength: float) -> np.ndarray:
    """As releases before 0.4 marked: every kernel as strongly as a large one."""
    drawn = noise(key, index, kernel.size).reshape(kernel.shape)
    return np.asarray(kernel + np.float32(strength * kernel.std(dtype=np.float64)) * drawn)


def key_of(seed: int, copy: int) -> bytes:
    return sha256(f"mark_strength {seed} {copy}".encode()).digest()


def trained(name: str, size: Size, seed: int, folder: Path) -> tuple[Weights, np.ndarray]:
    """Weights of the protected network, and the table of a key; from `folder` if they are there."""
    path = folder / f"{name}-{size.data}-{seed}.npz"
    if not path.exists():
        with (Trainings if name == "resnet20" else Small)(size, seed) as trainings:
            model = trainings.main(DEFAULTS).model
            table = model._secrets.record.assignment.classes.copy()
            traces = table == TRACE
            table[traces] = np.random.default_rng(seed).integers(CLASSES, size=traces.sum())
            head = [model.confused_labels.kernel, model.confused_labels.bias]
            weights = [*model.backbone.get_weights(), *map(keras.ops.convert_to_numpy, head)]
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, *weights, table=table)
    with np.load(path) as saved:
        table = saved["table"]
        return [saved[f"arr_{i}"] for i in range(len(saved.files) - 1)], table


def leaker(name: str, size: Size, seed: int, data: Data, folder: Path) -> Leaker:
    weights, table = trained(name, size, seed, folder)
    plain = network(name, size.data, data.x.shape[1:])
    head = keras.layers.Dense(len(table), activation="softmax")
    body = keras.Model(plain.inputs, head(plain.layers[-1].input))
    return Leaker(body, weights, table)


def run_seed(
    name: str,
    size: Size,
    seed: int,
    strengths: Sequence[float],
    parts: Sequence[str],
    cells: Cells,
    folder: Path,
) -> None:
    """The cells of one seed; trains only if one of them is missing."""
    wanted = [f"seed {seed}, {s:g}: {part}" for part in parts for s in strengths]
    if f"seed {seed}: unmarked" in cells and all(key in cells for key in wanted):
        return
    data = load(size.data, size.samples, size.others)
    found = leaker(name, size, seed, data, folder)
    digest = kernels_digest(found.originals)[:8]
    keys = [key_of(seed, copy) for copy in range(COPIES)]

    def right(kernels: Weights) -> float:
        return accuracy(found.load(kernels), data.x_test, data.y_test)

    def unmarked() -> dict[str, Any]:
        weights = int(sum(kernel.size for kernel in found.originals))
        return {"accuracy": right(found.originals), "weights": weights, "trained": digest}

    def traced(strength: float) -> dict[str, Any]:
        copies = [embed(found.originals, key, strength) for key in keys]
        average = [np.mean(same, 0, dtype=np.float32) for same in zip(*copies, strict=True)]
        return {
            "untouched": found.z(copies[0], keys[:1], strength)[0],
            "int8": found.z([integers(kernel) for kernel in copies[0]], keys[:1], strength)[0],
            "average": found.z(average, keys, strength),
            "trained": digest,
        }

    def copies(strength: float) -> dict[str, Any]:
        rates = [right(embed(found.originals, key, strength)) for key in keys]
        return {"accuracy": rates, "trained": digest}

    def tuned(strength: float, disturbance: float = 0.0) -> dict[str, Any]:
        keras.utils.set_random_seed(seed)
        random = np.random.default_rng(seed)
        stolen = [
            noisy(kernel, disturbance, random)
            for kernel in embed(found.originals, keys[0], strength)
        ]
        classifier = found.load(stolen)
        finetune(classifier, data.x[:10_000], data.y[:10_000], THIEF, augment=False)
        z = found.z(found.kernels(), keys[:1], strength)[0]
        after = accuracy(classifier, data.x_test, data.y_test)
        return {"z": z, "accuracy": after, "trained": digest}

    def divergence(strength: float) -> dict[str, Any]:
        def answers(kernels: Weights) -> np.ndarray:
            return np.log(predict(found.load(kernels), data.x_test[:1000]) + 1e-9)

        before = answers(found.originals)
        of: dict[str, list[float]] = {"by size": [], "equal": []}
        for key in keys:
            equal = [embed_equally(w, key, i, strength) for i, w in enumerate(found.originals)]
            for rule, marked in (
                ("by size", embed(found.originals, key, strength)),
                ("equal", equal),
            ):
                apart = np.sum(np.exp(before) * (before - answers(marked)), -1)
                of[rule].append(float(apart.mean()))
        return {**of, "trained": digest}

    cells.get(f"seed {seed}: unmarked", unmarked)
    disturbed = partial(tuned, disturbance=NOISE)
    measures = dict(zip(PARTS, (traced, tuned, copies, disturbed, divergence), strict=True))
    for part in parts:
        for s in strengths:
            cells.get(f"seed {seed}, {s:g}: {part}", lambda m=measures[part], s=s: m(s))


# --- the table ---------------------------------------------------------------------------


def show(cells: Cells) -> None:
    """Every seed's figures, by strength; "–" where a cell was not run."""
    saved = cells.saved["cells"]
    seeds = sorted({int(key.split()[1].strip(",:")) for key in saved})
    for seed in seeds:
        row = saved[f"seed {seed}: unmarked"]
        accuracy = f"{100 * row['accuracy']:.2f} %"
        console.print(f"seed {seed}: {row['weights']:,} weights, unmarked {accuracy}")
    table = Table(
        "strength",
        "accuracy, mean of 10 copies",
        "worst copy",
        "z untouched",
        "z int8",
        "least z, average of 10",
        "z fine-tuned",
        "z noise, fine-tuned",
        "divergence",
        "divergence, all kernels alike",
    )
    for strength in sorted({float(k.split()[2][:-1]) for k in saved if "unmarked" not in k}):

        def each(part: str, show: Any, strength: float = strength) -> str:
            keys = [(seed, f"seed {seed}, {strength:g}: {part}") for seed in seeds]
            return " / ".join(show(s, saved[k]) if k in saved else "–" for s, k in keys)

        def lost(seed: int, rate: float) -> str:
            return f"{100 * (rate - saved[f'seed {seed}: unmarked']['accuracy']):+.2f}"

        table.add_row(
            f"{strength:g}",
            each("copies", lambda s, c: lost(s, np.mean(c["accuracy"]))),
            each("copies", lambda s, c: lost(s, min(c["accuracy"]))),
            each("traced", lambda _, c: f"{c['untouched']:.0f}"),
            each("traced", lambda _, c: f"{c['int8']:.0f}"),
            each("traced", lambda _, c: f"{min(c['average']):.0f}"),
            each("fine-tuned", lambda _, c: f"{c['z']:.0f}"),
            each("disturbed", lambda _, c: f"{c['z']:.0f}"),
            each("divergence", lambda _, c: f"{np.mean(c['by size']):.1e}"),
            each("divergence", lambda _, c: f"{np.mean(c['equal']):.1e}"),
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", choices=SIZES, default="digits")
    parser.add_argument("--network", choices=NETWORKS, default="small")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--strengths", type=float, nargs="+", default=STRENGTHS)
    parser.add_argument("--parts", choices=PARTS, nargs="+", default=PARTS)
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="of trained networks")
    args = parser.parse_args()
    if args.network == "resnet20" and args.data != "cifar10":
        parser.error("ResNet-20 is trained on cifar10 only.")
    size = replace(SIZES[args.data], ways=(DEFAULTS,))
    shared = {k: v for k, v in asdict(size).items() if k in ("data", "samples", "first", "second")}
    setting = {"network": args.network, "copies": COPIES, "thief": asdict(THIEF), **shared}
    cells = Cells(RESULTS / f"mark-strength-{args.data}-{args.network}.json", setting)
    with tempfile.TemporaryDirectory() as folder:
        for seed in args.seeds:
            keep = args.keep or Path(folder)
            run_seed(args.network, size, seed, args.strengths, args.parts, cells, keep)
    show(cells)


if __name__ == "__main__":
    main()
