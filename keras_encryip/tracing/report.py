"""What tracing found, as an object, a table, a file and a picture."""

import io
import warnings
from os import PathLike, fspath
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import msgspec
import numpy as np
from rich.console import Console
from rich.table import Column, Table

from keras_encryip.crypto.secret import Secret
from keras_encryip.errors import ArgumentError, FormatError, instead_of, needing, printable
from keras_encryip.formats.atomic_files import read_bounded, write_new_file
from keras_encryip.formats.text import as_shown, without_mark
from keras_encryip.tracing.events import now_text
from keras_encryip.tracing.statistics import SIGNIFICANCE, proves_guilt

GUILTY: Final = "guilty"
IDENTIFIED: Final = "identified"
INCONCLUSIVE: Final = "inconclusive"
MAX_REPORT_BYTES: Final = 64 << 20
MAX_SHOWN: Final = 10
MAX_SCORES: Final = 10_000
_Probability = Annotated[float, msgspec.Meta(ge=0, le=1)]


class Suspect(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A user and how strongly the evidence points at them.

    Attributes:
        subject, key_id, status: as listed by `Authority.users`.
        score: of bits read, or standard deviations; `TraceReport.score_name` says which.
        p_value: the chance that *any* of the users tested scores so high by accident.
        identified: what was found names this user, but others than its user can have it.
    """

    subject: str
    key_id: str
    status: str
    score: float
    p_value: _Probability
    identified: bool = False

    @property
    def guilty(self) -> bool:
        """Whether the p-value is at most `SIGNIFICANCE`."""
        return proves_guilt(self.p_value)


class Findings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The public part of a report: everything that its file holds.

    Attributes are those of `TraceReport`.
    """

    at: str
    evidence: dict[str, Any]
    kind: str
    model: str
    score_name: str
    scores: list[float]
    significance: float
    suspects: list[Suspect]
    tested: int
    tests: int
    threshold: float | None
    version: Literal[2] = 2

    @classmethod
    def now(cls, **facts: Any) -> Self:
        """Of this moment, at the significance of all reports."""
        return cls(at=now_text(), significance=SIGNIFICANCE, **facts)


class _Version(msgspec.Struct):
    """Of a saved report, whatever else it says."""

    version: int = 0


class TraceReport(Secret):
    """Who leaked, with what certainty.

    Attributes:
        kind: what was traced: `"bundle"`, `"key"`, `"combined key"`, `"table"`,
            `"service"` or `"weights"`.
        model: the model's name, or `""` for keys.
        suspects: `Suspect`s, strongest evidence first: all that are guilty, and the next few.
        tested: number of users that could have been named.
        tests: that times what they were compared under, such as trace sets: what p-values
            are corrected for.
        evidence: facts that the verdict rests on, by name.
        scores: the scores of all users tested, highest first; at most the first 10,000.
        score_name: what a score is.
        threshold: the least score that proves guilt; `None` if none does.
        at: UTC, `YYYY-MM-DDThh:mm:ssZ`.
        exhibits: what `Tracer.evidence` needs; not in the file. Secret.

    Example:
    >>> report.verdict, report.p_value <= 1e-6, [s.subject for s in report.guilty]
    ('guilty', True, ['alice'])
    """

    __slots__ = ("_findings", "exhibits")

    def __init__(self, findings: Findings, exhibits: dict[str, Any] | None = None) -> None:
        self._findings = findings
        self.exhibits = exhibits or {}

    def __getattr__(self, name: str) -> Any:
        if name in Findings.__struct_fields__:
            return getattr(self._findings, name)
        raise AttributeError(f"'TraceReport' object has no attribute {name!r}")

    @property
    def guilty(self) -> list[Suspect]:
        """The suspects whose guilt is proved at `SIGNIFICANCE`, 10⁻⁶; empty when inconclusive.

        Example:
        >>> [(suspect.subject, suspect.status) for suspect in report.guilty]
        [('alice', 'active')]
        """
        return [suspect for suspect in self._findings.suspects if suspect.guilty]

    @property
    def identified(self) -> list[Suspect]:
        """The suspects whom what was found names, without proving guilt.

        Example:
        >>> [suspect.subject for suspect in sealed_report.identified]
        ['alice']
        """
        return [s for s in self._findings.suspects if s.identified and not s.guilty]

    @property
    def verdict(self) -> str:
        """`"guilty"` if somebody's guilt is proved, else `"identified"` or `"inconclusive"`.

        Example:
        >>> report.verdict, sealed_report.verdict
        ('guilty', 'identified')
        """
        if self.guilty:
            return GUILTY
        return IDENTIFIED if self.identified else INCONCLUSIVE

    @property
    def p_value(self) -> float:
        """The smallest of the suspects' p-values, 0 … 1, corrected for `tests`; 1 without suspects.

        Example:
        >>> report.p_value <= report.significance
        True
        """
        return min((suspect.p_value for suspect in self._findings.suspects), default=1.0)

    def _describe(self) -> str:
        names = ", ".join(suspect.subject for suspect in self.guilty or self.identified)
        return f"{self._findings.kind}: {self.verdict}{' ' if names else ''}{names}"

    def _title(self) -> str:
        findings = self._findings
        named = self.guilty or self.identified
        names = [suspect.subject for suspect in named[:MAX_SHOWN]]
        more = ["…"] if len(named) > MAX_SHOWN else []
        of = f" of {findings.model!r}" if findings.model else ""
        listed = f": {', '.join(names + more)}" if names else ""
        return f"{findings.kind}{of}: {self.verdict}{listed}"

    def _bound(self) -> str:
        name, threshold = self._findings.score_name, self._findings.threshold
        if threshold is None:
            return f"no {name} would prove guilt"
        return f"guilty from {name} {threshold:g} on"

    def table(self) -> Table:
        """The suspects, for `rich`; `str(report)` is the same as text.

        Example:
        >>> table = report.table()
        >>> str(table.title), table.row_count
        ('bundle: guilty: alice', 3)
        """
        findings = self._findings
        table = Table(
            "user",
            "key",
            "status",
            Column(as_shown(findings.score_name)),
            "p-value",
            "",
            title=as_shown(self._title()),
            caption=as_shown(
                f"{findings.tested:,} users tested; {self._bound()}: corrected p-value at most "
                f"{findings.significance:g}"
            ),
        )
        for suspect in findings.suspects[: max(MAX_SHOWN, len(self.guilty))]:
            table.add_row(
                as_shown(suspect.subject),
                as_shown(suspect.key_id),
                as_shown(suspect.status),
                f"{suspect.score:g}",
                f"{suspect.p_value:.1e}",
                GUILTY if suspect.guilty else IDENTIFIED if suspect.identified else "",
                style="bold" if suspect.guilty else None,
            )
        return table

    def __str__(self) -> str:
        file = io.StringIO()
        console = Console(file=file, width=100, color_system=None, force_jupyter=False)
        console.print(self.table())
        for name, value in self._findings.evidence.items():
            if isinstance(value, (str, int, float)):
                console.print(as_shown(f"{printable(name):24} {value}"))
        return file.getvalue()

    def to_bytes(self) -> bytes:
        """JSON, indented, with a newline at the end.

        Example:
        >>> data = report.to_bytes()
        >>> TraceReport.from_bytes(data).to_bytes() == data
        True
        """
        return msgspec.json.format(msgspec.json.encode(self._findings), indent=1) + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read what `to_bytes` wrote. The report then has no exhibits, and makes no evidence.

        Raises:
            FormatError: malformed.

        Example:
        >>> TraceReport.from_bytes(report.to_bytes()).guilty == report.guilty
        True
        """
        with instead_of(
            msgspec.MsgspecError,
            UnicodeDecodeError,
            RecursionError,
            raises=lambda error: FormatError(f"The trace report is malformed: {error}."),
        ):
            if msgspec.json.decode(data, type=_Version).version == 1:
                raise FormatError(
                    "This trace report has version 1, which release 0.3 of keras_encryip reads. "
                    "Trace anew, or use release 0.3."
                )
            return cls(msgspec.json.decode(data, type=Findings))

    @classmethod
    def read(cls, path: str | PathLike[str]) -> Self:
        """Read a report that was saved as JSON, of at most 64 MiB.

        Raises:
            FormatError: malformed, or the file cannot be read.

        Example:
        >>> report.save(folder / "report.json")
        >>> TraceReport.read(folder / "report.json").verdict
        'guilty'
        """
        data = read_bounded(path, what="trace report", max_bytes=MAX_REPORT_BYTES)
        return cls.from_bytes(without_mark(data, what=f"trace report {fspath(path)!r}"))

    def save(self, path: str | PathLike[str]) -> None:
        """Write the report: `.json`, or a picture (`.png`; needs matplotlib).

        Raises:
            ArgumentError: another ending, or the file exists or cannot be written.
            MissingExtraError: a picture is wanted, and matplotlib is not installed.

        Example:
        >>> report.save(folder / "report.json")
        >>> report.save(folder / "report.png")
        >>> (folder / "report.png").read_bytes()[1:4]
        b'PNG'
        """
        ending = check_ending(path)
        write_new_file(path, self.to_bytes() if ending == ".json" else self._picture())

    def _picture(self) -> bytes:
        buffer = io.BytesIO()
        with warnings.catch_warnings():  # a letter that the font has not is drawn as a box
            warnings.filterwarnings("ignore", "Glyph", UserWarning)
            self._figure().savefig(buffer, format="png", dpi=120)
        return buffer.getvalue()

    def _figure(self) -> Any:
        """Scores by rank with the threshold; the guilty are named."""
        with needing("plots"):
            from matplotlib.figure import Figure

        findings = self._findings
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.add_subplot()
        ranks = np.arange(1, len(findings.scores) + 1)
        axes.plot(ranks, findings.scores, ".", color="#888888", label="users tested")
        if findings.threshold is not None:
            axes.axhline(
                findings.threshold,
                linestyle="--",
                color="#b00020",
                label=f"guilty from {findings.threshold:g}",
            )
        guilty = self.guilty[: len(findings.scores)]
        axes.plot(
            ranks[: len(guilty)], [s.score for s in guilty], "o", color="#b00020", label="guilty"
        )
        for rank, suspect in zip(ranks, guilty[:MAX_SHOWN], strict=False):
            axes.annotate(
                printable(suspect.subject, 40),
                (rank, suspect.score),
                (8, 0),
                textcoords="offset points",
                parse_math=False,
            )
        axes.set(
            xscale="log" if findings.scores else "linear",
            xlabel=f"users by score (best {len(findings.scores):,} of {findings.tested:,})",
            ylabel=printable(findings.score_name, 100),
        )
        title = f"{printable(self._title(), 100)}, p = {self.p_value:.1e}"
        axes.set_title(title, fontsize="medium", parse_math=False)
        axes.legend()
        return figure


def check_ending(path: str | PathLike[str]) -> str:
    """The ending of a report's file: `".json"` or `".png"`.

    Raises:
        ArgumentError: another.
    """
    ending = Path(path).suffix.lower()
    if ending not in (".json", ".png"):
        raise ArgumentError(f"`path` must end in .json or .png. Received: path={str(path)!r}")
    return ending
