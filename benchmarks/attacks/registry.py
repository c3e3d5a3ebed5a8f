"""The register of attacks: a new one is a missing row of every method, and is run by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .case import Case

Accuracies = Iterable[tuple[str, float]]
"""(setting, accuracy on the test set)."""

LABELLED = ("reading", "layers", "training", "raw inputs")
UNLABELLED = ("no labels", "out of reach")
"""Families: attacks with n labelled samples per class, and without any. What is out of reach
takes the test labels, and measures a model's structure instead of an outsider's success."""


@dataclass(frozen=True)
class Attack:
    """Attributes:
    name: of its rows.
    family: one of `LABELLED` or `UNLABELLED`.
    needs_model: whether it uses the weights.
    tries: the accuracy of every setting.
    """

    name: str
    family: str
    needs_model: bool
    tries: Callable[[Case], Accuracies]

    @property
    def labelled(self) -> bool:
        return self.family in LABELLED

    def run(self, case: Case) -> dict[str, Any]:
        """The best setting *on the test set*, which favours the outsider."""
        settings = dict(self.tries(case))
        best = max(settings, key=lambda name: settings[name])
        return {"accuracy": settings[best], "best setting": best, "settings tried": len(settings)}


ATTACKS: dict[str, Attack] = {}
"""By name, in the order of the report."""


def attack(
    name: str, *, family: str, needs_model: bool = True
) -> Callable[[Callable[[Case], Accuracies]], Callable[[Case], Accuracies]]:
    """Registers a function that takes a `Case` and gives the accuracy of every setting."""
    if name in ATTACKS or family not in LABELLED + UNLABELLED:
        raise ValueError(f"The attack is there already, or of no known family: {name}, {family}.")

    def register(tries: Callable[[Case], Accuracies]) -> Callable[[Case], Accuracies]:
        ATTACKS[name] = Attack(name, family, needs_model, tries)
        return tries

    return register
