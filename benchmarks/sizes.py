"""How much of everything a run takes: `quick` in minutes, `nightly` in a night."""

from dataclasses import dataclass

from .training import Schedule


@dataclass(frozen=True)
class Size:
    """Of a run on one data set.

    Attributes:
        data: its name.
        samples: for training.
        others: that nobody trained with, for attackers.
        first, second: the two cycles. The twin trains both; *train, protect, fit* protects
            between them.
        seeds: of the runs.
        labelled: samples per class that an outsider has labels of.
        steps: of every network that an outsider trains.
        tests: test inputs that attacks are measured on, at most.
        ways: to protect, by name, which outsiders attack; see `trainings`.
        copies: personalised copies that are made of every peer's model.
    """

    data: str
    samples: int
    others: int
    first: Schedule
    second: Schedule
    seeds: tuple[int, ...] = (0, 1, 2)
    labelled: tuple[int, ...] = (1, 5, 20, 100)
    steps: int = 300
    tests: int = 10_000
    ways: tuple[str, ...] = ("defaults", "from scratch")
    copies: int = 5

    def in_words(self) -> str:
        """All that rows must share; the rest of a size says which rows there are."""
        return (
            f"{self.samples:,} training samples, {self.others:,} of attackers; first cycle "
            f"{self.first.in_words()}, second {self.second.in_words()}; attackers' networks "
            f"{self.steps} steps; {self.tests:,} test inputs of attacks"
        )


QUICK = (
    Size(
        "digits",
        1000,
        397,
        Schedule(5, 32),
        Schedule(16, 32),
        seeds=(0,),
        labelled=(1,),
        steps=40,
        ways=("defaults",),
        copies=2,
    ),
)
NIGHTLY = (
    Size(
        "mnist",
        10_000,
        5_000,
        Schedule(8, 64),
        Schedule(4, 32),
    ),
    Size(
        "cifar10",
        10_000,
        5_000,
        Schedule(5, 64, 3e-3),
        Schedule(3, 32),
        steps=100,
        tests=4_000,
        ways=("defaults",),
        copies=1,
    ),
)
SIZES = {"quick": QUICK, "nightly": NIGHTLY}
