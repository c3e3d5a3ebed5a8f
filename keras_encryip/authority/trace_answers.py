"""Whose decode table or service this is: `Tracer.table` and `Tracer.service`."""

import os
from typing import Any, Final

import numpy as np

from keras_encryip.authority.authority import Authority
from keras_encryip.authority.earlier_evidence import EarlierEvidence
from keras_encryip.authority.score_users import score_users
from keras_encryip.client.decoder import Decoder
from keras_encryip.errors import ArgumentError, LedgerError
from keras_encryip.formats.progress import progress_bar
from keras_encryip.labels.codebook import Codebook
from keras_encryip.labels.model_record import ModelRecord
from keras_encryip.labels.trace_set import ordinary_answers, plurality
from keras_encryip.tracing.report import TraceReport
from keras_encryip.tracing.service.natural import natural_weights
from keras_encryip.tracing.service.query import UNANSWERED, Predict, ask
from keras_encryip.tracing.statistics import observed_weights, ownership

_MOST_PROBABILITIES: Final = 1 << 20
_MOST_LIVE: Final = 1 << 23


def trace_table(owner: Authority, record: ModelRecord, table: np.ndarray | Decoder) -> TraceReport:
    """What `Tracer.table` does."""
    values = _checked_table(table, record)
    orders = _orders(owner, record)
    homophones = record.assignment.homophones
    meant = np.repeat(np.arange(record.assignment.num_classes), homophones)
    readings = [(values[order.labels.ravel()], meant) for _, order in orders]
    answers = _Answers(owner, "table", record, [values[order.trace] for _, order in orders])
    answers.evidence = ownership(readings, record.assignment.num_classes)
    return answers.report({"table": values, "codebooks": [codebook for codebook, _ in orders]})


def trace_service(
    owner: Authority,
    record: ModelRecord,
    predict: Predict | str,
    *,
    model: Any,
    inputs: np.ndarray | None,
    decoder: Decoder | None,
    transcript: str | os.PathLike[str] | None,
    batch_size: int,
) -> TraceReport:
    """What `Tracer.service` does."""
    sets = owner.model_store.trace_sets_of(record)
    if not sets:
        raise LedgerError(
            f"Model {record.metadata.model!r} has no trace inputs: it was not trained yet, or "
            "was protected with `trace_labels=0`."
        )
    questions = np.concatenate([traces.inputs for traces in sets])
    natural = _natural_inputs(record, model, inputs)
    with progress_bar("asking the service", len(questions) + len(natural)) as advance:
        said, rows = ask(
            predict,
            questions,
            natural,
            class_names=record.metadata.class_names,
            decoder=decoder,
            transcript=transcript,
            batch_size=batch_size,
            progress=advance,
        )
    parts = np.split(said, np.cumsum([len(traces.labels) for traces in sets])[:-1])
    asked = list(zip(sets, parts, strict=True))
    observed = [plurality(*pair, record.assignment.trace) for pair in asked]
    answers = _Answers(owner, "service", record, observed)
    reading = ordinary_answers(asked, record.assignment.classes)
    answers.evidence = ownership([reading], record.assignment.num_classes)
    answers.evidence["unanswered"] = int((said == UNANSWERED).sum())
    if np.isfinite(rows).any():
        answers.add_rows(np.asarray(model.predict(natural, verbose=0)), rows)
    if decoder is not None:
        answers.set_apart(decoder.key_id)
    return answers.report({"sets": sets, "answers": parts})


def _natural_inputs(record: ModelRecord, model: Any, inputs: np.ndarray | None) -> np.ndarray:
    """Inputs `[m, …]` to ask beside the trace inputs, as many as there is room and time for."""
    if model is None:
        if inputs is not None:
            raise ArgumentError(
                "`inputs` need the protected model itself: what it makes of them is compared with "
                f"the service. Received: model={record.metadata.model!r}"
            )
        return np.empty(0)
    natural = record.samples if inputs is None else np.asarray(inputs)
    if natural is None:
        return np.empty(0)
    assignment = record.assignment
    most = min(
        _MOST_PROBABILITIES // assignment.num_classes, _MOST_LIVE // max(1, len(assignment.trace))
    )
    return natural[: max(1, most)]


def _orders(owner: Authority, record: ModelRecord) -> list[tuple[Codebook, Any]]:
    """The first codebook of each order that the model's labels had, with its assignment."""
    store = owner.model_store
    orders: dict[bytes, tuple[Codebook, Any]] = {}
    for codebook in store.codebooks_of(record.model_id):
        order = store.assignment_of(codebook)
        orders.setdefault(order.secret_bytes(), (codebook, order))
    return list(orders.values())


class _Answers:
    """What live labels were read as, in one or several readings.

    Args:
        observed: int `[T]` of classes for each reading, -1 for none, in the order of
            `assignment.trace`.

    Attributes:
        evidence: facts for the report.
    """

    def __init__(
        self, owner: Authority, kind: str, record: ModelRecord, observed: list[np.ndarray]
    ) -> None:
        self.evidence: dict[str, Any] = {}
        self._owner, self._kind, self._record = owner, kind, record
        assignment, secrets = record.assignment, owner.keys.slots
        self._slots = assignment.slots[assignment.trace]
        self._biases = secrets.biases[self._slots]
        self._weights = [
            observed_weights(said, assignment.pairs, self._biases) for said in observed
        ]
        self._apart: str | None = None

    def add_rows(self, confused: np.ndarray, rows: np.ndarray) -> None:
        """A further reading, from the service's probabilities `[m, K]` of natural inputs.

        Args:
            confused: float `[m, N]`, what the model itself makes of these.
        """
        assignment, biases = self._record.assignment, self._biases
        labels, trace, pairs = assignment.labels, assignment.trace, assignment.pairs
        self._weights.append(natural_weights(confused, rows, labels, trace, pairs, biases))
        answered = np.isfinite(rows).all(axis=1)
        self.evidence["natural inputs answered"] = f"{int(answered.sum())} of {len(rows)}"

    def set_apart(self, key_id: str) -> None:
        """Leave out the user whose own key turned confused labels into these answers."""
        self._apart = key_id
        subject = next((u.subject for u in self._owner.user_store.with_keys([key_id])), key_id)
        self.evidence["decoded with the key of"] = f"{subject}, who is therefore not a suspect"

    def report(self, exhibits: dict[str, Any]) -> TraceReport:
        """Score all users in each reading."""
        users = self._owner.user_store
        earlier = EarlierEvidence.read(self._owner.ledger)
        scored = score_users(
            users,
            self._owner.keys.slots,
            self._slots,
            self._weights,
            earlier=earlier,
            apart=self._apart,
        )
        read = max(int(np.count_nonzero(weights)) for weights in self._weights)
        facts = {
            "live labels read": f"{read} of {len(self._slots)}",
            "comparisons": len(self._weights),
        }
        findings = scored.findings(
            users,
            evidence={**facts, **self.evidence},
            kind=self._kind,
            model=self._record.metadata.model,
        )
        return TraceReport(
            findings,
            {
                **exhibits,
                "record": self._record,
                "earlier": earlier.events,
                "alone": [scored.alone(s) for s in findings.suspects if s.guilty],
            },
        )


def _checked_table(table: np.ndarray | Decoder, record: ModelRecord) -> np.ndarray:
    values = table.secret_table() if isinstance(table, Decoder) else np.asarray(table)
    labels, classes = record.assignment.num_labels, record.assignment.num_classes
    if values.shape != (labels,) or values.dtype.kind not in "iu":
        raise ArgumentError(
            f"`table` must hold {labels} integers, one for each output of model "
            f"{record.metadata.model!r}. Received: shape {values.shape}, {values.dtype}"
        )
    if values.size and not -1 <= values.min() <= values.max() < classes:
        raise ArgumentError(f"`table` must hold classes 0 … {classes - 1}, or -1 for unknown.")
    return values.astype(np.int64)
