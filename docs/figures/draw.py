"""Draws the pictures of README and docs/concepts.md: `python docs/figures/draw.py`.

`confused-labels.png` is `all-answers.png` of `encryip demo`, made anew in a minute: keys are drawn
at random, so its columns lie elsewhere each time. The others show no data.
"""

import io
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from rich.console import Console

from keras_encryip.cli.demo import run_demo

HERE = Path(__file__).parent
SECRET, PUBLIC, PLAIN = "#f8d7da", "#d4edda", "#eef2f7"
CLASSES = ("#c1440e", "#1f77b4", "#2ca02c")
NAMES = ("cat", "dog", "owl")


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """Axes in inches, without a frame."""
    figure = Figure(figsize=(width, height), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    return figure, axes


def box(axes: Axes, at: tuple[float, float], size: tuple[float, float], colour: str) -> None:
    style = "round,pad=0,rounding_size=0.08"
    axes.add_patch(FancyBboxPatch(at, *size, boxstyle=style, facecolor=colour, edgecolor="#555"))


def files(axes: Axes, x: float, top: float, lines: Sequence[tuple[str, str, str]]) -> None:
    """File names over what they are, one below the other, 2.5 inches wide."""
    for number, (name, what, colour) in enumerate(lines):
        y = top - 0.62 * number
        box(axes, (x, y - 0.52), (2.5, 0.52), colour)
        axes.text(x + 0.1, y - 0.19, name, family="monospace", size=9, va="center")
        axes.text(x + 0.1, y - 0.38, what, size=8, color="#333", va="center")


def arrow(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], label: str, lift: float = 0.1
) -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": "#333", "lw": 1.5})
    middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + lift)
    axes.text(*middle, label, ha="center", va="bottom", size=8.5, linespacing=1.3)


def roles() -> Figure:
    """Owner, host and application, and the files that each has."""
    figure, axes = canvas(11, 3.7)
    columns = (
        (0.2, "Owner", "trains, issues keys"),
        (4.25, "Host", "runs the model server"),
        (8.3, "Application", "reads the answers"),
    )
    for x, role, task in columns:
        box(axes, (x - 0.1, 0.55), (2.7, 3.0), PLAIN)
        axes.text(x + 1.25, 3.3, role, ha="center", va="center", size=12, weight="bold")
        axes.text(x + 1.25, 3.05, task, ha="center", va="center", size=9)
    files(
        axes,
        0.2,
        2.85,
        [
            ("acme.authority", "all secrets; never leaves the house", SECRET),
            ("digits.keras", "protected model, for later training", PUBLIC),
            ("classifier.keras", "the model as it was, if you keep it", SECRET),
        ],
    )
    files(
        axes,
        4.25,
        2.85,
        [
            ("served/digits/1/", "plain folder; needs no key", PUBLIC),
            ("or locked/digits/1/", "noise until a key unlocks it", PUBLIC),
            ("digits.key", "by the host's own key bundle", SECRET),
        ],
    )
    files(
        axes,
        8.3,
        2.85,
        [
            ("alice.keybundle", "one file a user, and its passphrase", SECRET),
            ("codebook.json", "from the folder; one per version", PUBLIC),
        ],
    )
    arrow(axes, (2.8, 2.5), (4.15, 2.5), "folder")
    arrow(axes, (8.2, 2.5), (6.85, 2.5), "inputs")
    arrow(axes, (6.85, 1.6), (8.2, 1.6), "confused\nlabels")
    axes.text(9.55, 1.25, '→ "7", "2", …', ha="center", va="center", size=10, style="italic")
    axes.plot([1.45, 1.45, 9.55, 9.55], [0.55, 0.3, 0.3, 0.42], color="#333", lw=1.5)
    arrow(axes, (9.55, 0.4), (9.55, 0.55), "")
    axes.text(
        5.5,
        0.33,
        "key bundle and codebook; a host of locked folders gets a bundle of its own",
        ha="center",
        va="bottom",
        size=8.5,
    )
    axes.text(0.1, 0.06, "red: secret   green: holds no key", size=8, va="bottom")
    return figure


def one_answer() -> Figure:
    """One answer of a model with three classes, without a key and with one."""
    rng = np.random.default_rng(3)
    homophones, trace = 6, 3
    labels = np.repeat([0, 1, 2], homophones).tolist() + [3] * trace
    order = rng.permutation(len(labels))
    of_class = np.array(labels)[order]
    p = np.where(of_class == 1, rng.gamma(0.6, 1.0, len(labels)), 0.0)
    p = p / p.sum() * 0.88 + rng.dirichlet(np.full(len(labels), 0.7)) * 0.12
    figure = Figure(figsize=(11, 2.9), layout="constrained", facecolor="white")
    outside, inside, read = figure.subplots(1, 3, width_ratios=(5, 5, 2))
    outside.bar(range(len(p)), p, color="#999")
    outside.set(
        title="What the host and a thief see", xlabel="confused label", ylabel="probability"
    )
    colours = [(*CLASSES, "#ddd")[each] for each in of_class]
    inside.bar(range(len(p)), p, color=colours)
    inside.set(title="What a key adds: the class of each label", xlabel="confused label")
    for name, colour in (*zip(NAMES, CLASSES, strict=True), ("trace label", "#ddd")):
        inside.bar(0, 0, color=colour, label=name)
    inside.legend(fontsize=8)
    shared = of_class.copy()
    shared[of_class == 3] = rng.integers(0, 3, trace)  # a key reads some class there, too
    read.bar(NAMES, [p[shared == each].sum() for each in range(3)], color=CLASSES)
    read.set(title="Added up", ylim=(0, 1))
    return figure


def slots() -> Figure:
    """Five labels, their slots, and what two users read."""
    figure, axes = canvas(9.5, 3.1)
    heads = ("label", "its slot", "reads, with bit 0", "reads, with bit 1", "alice", "bob")
    x = (0.6, 1.8, 3.5, 5.4, 7.2, 8.7)
    rows = (
        ("0", "512", "dog", "dog", 1, 0),
        ("1", "38", "cat", "cat", 0, 1),
        ("2", "907", "owl", "cat", 1, 0),
        ("3", "7", "owl", "owl", 0, 0),
        ("4", "660", "dog", "owl", 1, 1),
    )
    for place, head in zip(x, heads, strict=True):
        axes.text(place, 2.8, head, ha="center", va="center", size=10, weight="bold")
    for number, (label, slot, zero, one, *bits) in enumerate(rows):
        y = 2.35 - 0.45 * number
        if zero != one:
            box(axes, (0.2, y - 0.19), (9.1, 0.38), "#fff3cd")
        cells = [label, slot, zero, one]
        cells += [f"bit {bit}: {(zero, one)[bit]}" for bit in bits]
        for place, cell in zip(x, cells, strict=True):
            axes.text(place, y, cell, ha="center", va="center", size=10)
    axes.text(
        0.2,
        0.16,
        "yellow: trace labels. At label 2 alice and bob read different classes: an answer there "
        "shows whose key was used.",
        size=8.5,
        va="center",
    )
    return figure


def keys() -> Figure:
    """From the authority's secrets to what each role opens."""
    figure, axes = canvas(11, 3.6)
    box(axes, (0.1, 0.5), (2.5, 2.7), SECRET)
    axes.text(1.35, 2.95, "authority", ha="center", size=11, weight="bold")
    axes.text(1.35, 2.2, "reading polynomial\nslot seed", ha="center", va="center", size=9)
    axes.text(1.35, 0.9, "running polynomial", ha="center", va="center", size=9)
    box(axes, (4.1, 0.5), (2.7, 2.7), SECRET)
    axes.text(5.45, 2.95, "alice.keybundle", ha="center", size=10, family="monospace")
    axes.text(5.45, 2.2, "role read:\na point, 1,024 slot keys", ha="center", va="center", size=9)
    axes.text(5.45, 0.9, "role run:\na point", ha="center", va="center", size=9)
    opens = (
        (2.2, "header in codebook.json", "classes of all labels;\nencrypted responses"),
        (0.9, "header in lock.json", "the key that decrypts\na locked folder's weights"),
    )
    for y, header, what in opens:
        box(axes, (8.3, y - 0.35), (2.6, 1.05), PUBLIC)
        axes.text(9.6, y + 0.5, header, ha="center", va="center", size=9, weight="bold")
        axes.text(9.6, y, what, ha="center", va="center", size=8.5)
        arrow(axes, (2.6, y), (4.1, y), "issue")
        arrow(axes, (6.8, y), (8.3, y), "opens")
    axes.text(
        0.1,
        0.2,
        "Revoking bob: headers made after that shut his key out. Nobody else gets a new key.",
        size=9,
        va="center",
    )
    return figure


def main() -> None:
    for draw in (roles, one_answer, slots, keys):
        name = draw.__name__.replace("_", "-")
        draw().savefig(HERE / f"{name}.png", dpi=120, metadata={"Software": None})
    with tempfile.TemporaryDirectory() as folder:
        run_demo(Path(folder), Path(folder), Console(file=io.StringIO()))
        shutil.copy(Path(folder) / "all-answers.png", HERE / "confused-labels.png")


if __name__ == "__main__":
    main()
