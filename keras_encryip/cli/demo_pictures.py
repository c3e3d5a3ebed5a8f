"""The demo's pictures of confused labels."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

INK, ACCENT, SOFT = "#1f2933", "#0b6e6e", "#b9c4cc"
SIZE = (7.5, 5.2)
"""Inches; letters stay legible on a phone."""


def draw_one_answer(
    path: Path, image: np.ndarray, confused: np.ndarray, read: np.ndarray, names: Sequence[str]
) -> None:
    """One input, what the host sees of its answer, and what a key holder reads.

    Args:
        path: the PNG.
        image: `[8, 8, 1]`.
        confused: float32 `[N]`, probabilities of the confused labels.
        read: float32 `[K]`, probabilities of the classes.
        names: of the classes.
    """
    figure = Figure(figsize=SIZE, layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=(1, 3.4))
    asked = figure.add_subplot(grid[:, 0])
    asked.imshow(image[..., 0], cmap="gray_r", interpolation="nearest")
    asked.set(title="The input", xticks=(), yticks=())
    host = figure.add_subplot(grid[0, 1])
    host.vlines(np.arange(len(confused)), 0, confused, color=INK, linewidth=1)
    host.set(
        title=f"What the host sees: {len(confused)} confused labels",
        xlabel="confused label, a number that means nothing",
        ylabel="probability",
        xlim=(-5, len(confused) + 4),
    )
    alice = figure.add_subplot(grid[1, 1])
    colours = [ACCENT if k == read.argmax() else SOFT for k in range(len(names))]
    alice.bar(names, read, color=colours)
    alice.set(title="What alice reads of the same answer", ylabel="probability", ylim=(0, 1.02))
    alice.tick_params(axis="x", rotation=45)
    _finish(figure, path)


def draw_all_answers(
    path: Path, confused: np.ndarray, y: np.ndarray, order: np.ndarray, names: Sequence[str]
) -> None:
    """Class-by-confused-label counts: in the order that the host sees, and in the owner's.

    Args:
        path: the PNG.
        confused: float32 `[n, N]`.
        y: int `[n]`, the true classes.
        order: int `[N]`, labels grouped by class, trace labels last.
        names: of the classes.
    """
    counts = np.zeros((len(names), confused.shape[-1]), int)
    np.add.at(counts, (y, confused.argmax(-1)), 1)
    figure = Figure(figsize=SIZE, layout="constrained")
    upper, lower = figure.subplots(2, 1)
    for axes, shown, title in (
        (upper, counts, "Labels in the numbering that the host sees"),
        (lower, counts[:, order], "What the owner knows: grouped by class, trace labels last"),
    ):
        rows, columns = np.nonzero(shown)
        axes.scatter(columns, rows, s=14, c=shown[rows, columns], cmap="viridis_r", vmin=0, vmax=5)
        axes.set(
            title=title,
            ylabel="true class",
            yticks=range(len(names)),
            yticklabels=names,
            xlim=(-5, len(order) + 4),
            ylim=(len(names) - 0.5, -0.5),
        )
    lower.set_xlabel("confused label")
    _finish(figure, path)


def _finish(figure: Figure, path: Path) -> None:
    for axes in figure.axes:
        sides = ["top", "right"] if axes.get_xlabel() or axes.get_ylabel() else slice(None)
        axes.spines[sides].set_visible(False)
    figure.savefig(path, dpi=130)
