"""Find out who leaked a key, a decode table, weights, or runs a service on them."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_encryip.authority.authority import Authority
from keras_encryip.authority.schema import REVOKED
from keras_encryip.authority.write_evidence import write_evidence
from keras_encryip.client.decoder import Decoder
from keras_encryip.crypto.combined_key import CombinedKey, find_traitors
from keras_encryip.crypto.kem import UserKey, key_id
from keras_encryip.errors import ArgumentError, ForeignKeyError, LedgerError
from keras_encryip.formats.key_bundle import KeyBundle
from keras_encryip.formats.progress import progress_bar
from keras_encryip.labels.codebook import Codebook
from keras_encryip.labels.model_record import ModelRecord
from keras_encryip.labels.trace_set import ordinary_answers, plurality
from keras_encryip.tracing.alignment import match, read_reference, score_copies
from keras_encryip.tracing.events import now_text
from keras_encryip.tracing.fingerprint import kernels_digest, p_value
from keras_encryip.tracing.report import MAX_SCORES, MAX_SHOWN, Findings, Suspect, TraceReport
from keras_encryip.tracing.service.query import UNANSWERED, Predict, ask
from keras_encryip.tracing.statistics import (
    FORGERY,
    SIGNIFICANCE,
    corrected,
    least_hits,
    ownership,
    rank_users,
)
from keras_encryip.tracing.weights import read_kernels


class Tracer:
    """Names the users behind what was leaked. docs/tracing.md says what each method proves.

    Args:
        authority: the open authority that protected the model and issued the keys.

    Example:
    >>> tracer = Tracer(authority)
    >>> tracer.bundle(folder / "alice.keybundle").guilty[0].subject
    'alice'
    """

    def __init__(self, authority: Authority) -> None:
        if not isinstance(authority, Authority):
            raise ArgumentError(
                f"`authority` must be an Authority. Received: {type(authority).__name__}"
            )
        self._authority = authority

    # --- keys --------------------------------------------------------------------

    def bundle(self, bundle: str | os.PathLike[str] | KeyBundle) -> TraceReport:
        """Whose key bundle this is. Its passphrase is not needed.

        Args:
            bundle: path of a key bundle, or one already read.

        Raises:
            ForeignKeyError: another authority issued it.
            FormatError, SignatureError: malformed, changed or forged.
        """
        if not isinstance(bundle, KeyBundle):
            bundle = KeyBundle.read(bundle)
        owner = self._authority
        if bundle.issuer != owner.issuer or bundle.authority != owner.public_key.digest:
            raise ForeignKeyError(
                f"Key bundle {bundle.header.key_id} was issued by another authority: "
                f"{bundle.header.issuer_name!r}."
            )
        evidence = {"signed by": owner.name, "subject in the bundle": bundle.header.subject}
        return self._key_report("bundle", [bundle.header.key_id], evidence, bundle)

    def key(self, key: UserKey | bytes) -> TraceReport:
        """Whose key this point (z, P(z)) is.

        Args:
            key: a `UserKey`, or its 64 bytes z ‖ P(z).
        """
        if isinstance(key, bytes):
            key = UserKey.from_secret_bytes(key)
        if not isinstance(key, UserKey):
            raise ArgumentError(
                f"`key` must be a UserKey or its 64 bytes. Received: {type(key).__name__}"
            )
        issued = self._authority.keys.master.user_key(key.z)
        on_polynomial = issued.secret_bytes() == key.secret_bytes()
        evidence = {"on the owner's polynomial": "yes" if on_polynomial else "no: not a key"}
        report = self._key_report("key", [key.key_id] if on_polynomial else [], evidence, key)
        if on_polynomial and not report.suspects:
            report.evidence["never issued"] = (
                f"a fresh point: at least {self._authority.threshold + 1} users pooled their keys"
            )
        return report

    def combined_key(self, weights: Sequence[int], nodes: Sequence[int]) -> TraceReport:
        """Who combined their keys into weights that open a header.

        Names all of up to ⌊t/2⌋ traitors (one for t = 1). More than that are not named,
        and nobody else is. A user revoked earlier is named with p-value 1: their z stands in
        public headers, so that t + 2 − ⌊t/2⌋ traitors could frame them.

        Args:
            weights: t + 1 integers (w_0; w_1 … w_t) with S = w_0·R + Σ w_j·H_j.
            nodes: the t nodes x_j of that header, in its order.
        """
        combined = CombinedKey(nodes, weights)
        threshold = self._authority.threshold
        if len(combined.nodes) != threshold:
            raise ArgumentError(
                f"`nodes` must hold threshold={threshold} integers. Received: {len(combined.nodes)}"
            )
        issued = self._authority.user_store.zs().values()
        traitors = find_traitors(combined, issued, self._authority.keys.master.user_key)
        evidence = {
            "at most this many are found": max(1, threshold // 2),
            "keys combined": len(traitors) or "unknown: too many, or not made from keys",
        }
        exhibit = {"nodes": combined.nodes, "weights": tuple(weights)}
        return self._key_report("combined key", [key_id(z) for z in traitors], evidence, exhibit)

    def _key_report(
        self, kind: str, key_ids: Sequence[str], evidence: dict[str, Any], exhibit: Any
    ) -> TraceReport:
        users = self._authority.user_store
        tested = users.count()
        suspects = []
        for user in users.with_keys(key_ids):
            framed = kind == "combined key" and user.status == REVOKED
            chance = 1.0 if framed else corrected(FORGERY, tested)
            suspects.append(Suspect(user.subject, user.key_id, user.status, 1.0, chance))
        suspects.sort(key=lambda suspect: suspect.p_value)
        findings = _findings(
            evidence=evidence,
            kind=kind,
            model="",
            score_name="match",
            scores=[s.score for s in suspects] + [0.0] * min(tested - len(suspects), MAX_SCORES),
            suspects=suspects,
            tested=tested,
            tests=max(1, tested),
            threshold=1.0,
        )
        return TraceReport(findings, {"key": exhibit})

    # --- answers -----------------------------------------------------------------

    def table(self, table: np.ndarray | Decoder, *, model: Any) -> TraceReport:
        """Whose decode table this is, pulled out of an application.

        Args:
            table: int `[N]`, the class of each confused label; -1 where unknown.
            model: the protected model, or its name (then the newest of that name).
        """
        record = self._record(model)
        store = self._authority.model_store
        values = table.secret_table() if isinstance(table, Decoder) else np.asarray(table)
        labels, classes = record.assignment.num_labels, record.assignment.num_classes
        if values.shape != (labels,) or values.dtype.kind not in "iu":
            raise ArgumentError(
                f"`table` must hold {labels} integers, one for each output of model "
                f"{record.metadata.model!r}. Received: shape {values.shape}, {values.dtype}"
            )
        if values.size and not -1 <= values.min() <= values.max() < classes:
            raise ArgumentError(f"`table` must hold classes 0 … {classes - 1}, or -1 for unknown.")
        values = values.astype(np.int64)
        codebooks = store.codebooks_of(record.model_id)
        orders = [store.assignment_of(codebook) for codebook in codebooks]
        meant = np.repeat(np.arange(classes), record.assignment.homophones)
        distinct = {order.secret_bytes(): order.labels.ravel() for order in orders}
        readings = [(values[labels], meant) for labels in distinct.values()]
        observed = [[values[order.trace]] for order in orders]
        evidence = ownership(readings, classes)
        return self._answers_report(
            "table", record, codebooks, observed, evidence, {"table": values}
        )

    def service(
        self,
        predict: Predict | str,
        *,
        model: Any,
        decoder: Decoder | None = None,
        transcript: str | os.PathLike[str] | None = None,
        batch_size: int = 16,
    ) -> TraceReport:
        """Whose key a service runs on, from the labels it answers.

        Sends the model's trace inputs in random order. Refused, failed and unreadable
        answers count as none.

        Args:
            predict: a function from inputs `[b, …]` to b classes, class names, or rows of
                probabilities, `None` for a refusal; or the address of a model at TF
                Serving's REST API.
            model: the protected model, or its name (then the newest of that name).
            decoder: reads the service's answers if these are confused labels.
            transcript: a file that keeps the answers, so that an interrupted or
                rate-limited run can go on.
            batch_size: inputs per request.

        Raises:
            ServiceError: the service answered nothing that can be read.
            LedgerError: the model is unknown, or was never trained.

        Example:
        >>> report = Tracer(authority).service(suspicious_service, model="digits")
        >>> print(report.verdict, report.guilty[0].subject)
        guilty alice
        """
        record = self._record(model)
        sets = self._authority.model_store.trace_sets_of(record)
        if not sets:
            raise LedgerError(
                f"Model {record.metadata.model!r} has no trace inputs: it was not trained yet, or "
                "was protected with `trace_labels=0`."
            )
        inputs = np.concatenate([traces.inputs for traces in sets])
        with progress_bar("asking the service", len(inputs)) as advance:
            answers = ask(
                predict,
                inputs,
                class_names=record.metadata.class_names,
                decoder=decoder,
                transcript=transcript,
                batch_size=batch_size,
                progress=advance,
            )
        parts = np.split(answers, np.cumsum([len(traces.labels) for traces in sets])[:-1])
        asked = list(zip(sets, parts, strict=True))
        observed = [plurality(*pair, record.assignment.trace) for pair in asked]
        reading = ordinary_answers(asked, record.assignment.classes)
        evidence = ownership([reading], record.assignment.num_classes)
        evidence["unanswered"] = int((answers == UNANSWERED).sum())
        codebooks = self._authority.model_store.codebooks_of(record.model_id)
        every = [observed] * len(codebooks)  # answers to an input: the same in every order
        exhibits = {"sets": sets, "answers": parts}
        return self._answers_report("service", record, codebooks, every, evidence, exhibits)

    def _answers_report(
        self,
        kind: str,
        record: ModelRecord,
        codebooks: list[Codebook],
        observed: list[list[np.ndarray]],
        evidence: dict[str, Any],
        exhibits: dict[str, Any],
    ) -> TraceReport:
        """Score every user under every codebook of the model against what was observed under it."""
        owner = self._authority
        comparisons = [
            row
            for codebook, lists in zip(codebooks, observed, strict=True)
            for row in owner.model_store.predicted_answers(codebook).compare(lists)
        ]
        ranking = rank_users(comparisons)
        shown = ranking.order[: max(MAX_SHOWN, ranking.guilty)].tolist()
        suspects = []
        for position in shown:
            user = owner.user_store.at(position)
            numbers = float(ranking.hits[position]), float(ranking.p_values[position])
            suspects.append(Suspect(user.subject, user.key_id, user.status, *numbers))
        most = max(int((said >= 0).sum()) for answers in observed for said in answers)
        classes = record.assignment.num_classes
        findings = _findings(
            evidence={
                "trace labels answered": most,
                "classes": classes,
                "codebooks tested": len(codebooks),
                **evidence,
            },
            kind=kind,
            model=record.metadata.model,
            score_name="coincidences",
            scores=[float(h) for h in ranking.hits[ranking.order[:MAX_SCORES]]],
            suspects=suspects,
            tested=len(ranking.order),
            tests=max(1, ranking.tests),
            threshold=float(least_hits(most, classes, ranking.tests)),
        )
        places = {
            suspect.key_id: divmod(int(ranking.best[position]), len(observed[0]))
            for suspect, position in zip(suspects, shown, strict=True)
        }
        exhibits = {**exhibits, "record": record, "codebooks": codebooks, "best": places}
        return TraceReport(findings, exhibits)

    # --- weights -----------------------------------------------------------------

    def weights(self, suspect: Any, *, model: Any, reference: Any = None) -> TraceReport:
        """Whose personalised copy these weights come from.

        Tests the users for whom the model was exported with `recipient=…`. Takes copies
        that were fine-tuned, pruned, quantised, averaged over several users' copies, or
        whose hidden units were permuted.

        Args:
            suspect: a SavedModel folder, a `.keras`, `.weights.h5` or `.npz` file, a list or
                dictionary of arrays, or a Keras model.
            model: the protected model, or its name (then the newest of that name).
            reference: the weights before they were marked, in any form of `suspect`. By
                default those of `model`, if it is a model; without any, tracing is blind,
                and much weaker.

        Raises:
            LedgerError: the model was never exported for a recipient.
            ArgumentError, FormatError: weights that cannot be read, or of another model.
        """
        record = self._record(model)
        recipients, shapes, digests = self._authority.export_store.copies_of(record)
        if reference is None and not isinstance(model, str):
            reference = model
        kernels = read_kernels(suspect)
        originals = None if reference is None else read_reference(reference, shapes)
        matched = match(kernels, shapes if originals is None else originals)
        keys = self._authority.keys
        marks = {k: keys.fingerprint_key(record.model_id, k) for k in recipients}
        orders = 1 if originals is None else 2
        with progress_bar("correlating with recipients' marks", orders * len(marks)) as advance:
            result = score_copies(matched, originals, marks, advance)
        ranked = sorted(result.scores, key=lambda recipient: -result.scores[recipient])
        tests = len(marks) * result.looks
        suspects = [
            Suspect(*recipients[k], z, corrected(p_value(z), tests))
            for k, z in ((k, result.scores[k]) for k in ranked)
        ]
        stated = "blind: none given"
        if originals is not None:
            exported = kernels_digest(originals) in digests
            stated = "as exported" if exported else "given, not what was exported"
        findings = _findings(
            evidence={
                "kernels found": f"{sum(k is not None for k in result.kernels)} of {len(shapes)}",
                "original weights": stated,
            },
            kind="weights",
            model=record.metadata.model,
            score_name="standard deviations",
            scores=[result.scores[k] for k in ranked[:MAX_SCORES]],
            suspects=suspects[: max(MAX_SHOWN, sum(s.guilty for s in suspects))],
            tested=len(marks),
            tests=tests,
            threshold=result.threshold,
        )
        exhibits = {"record": record, "suspect": result.kernels, "reference": originals}
        return TraceReport(findings, exhibits)

    # --- verdicts ----------------------------------------------------------------

    def evidence(self, report: TraceReport, directory: str | os.PathLike[str]) -> None:
        """Write a folder that anybody can check with `encryip verify-evidence`.

        It shows the leaked material, what this authority had committed to before, and what
        the accused users' keys make of it; no key, and nothing about other users. It does
        show the trace inputs, tracing blocks and marks that it rests on: hand it to a
        court or an expert, not to the public, and export anew afterwards.

        Args:
            report: of this authority's tracer, with a guilty user.
            directory: a new folder; it appears whole or not at all.

        Raises:
            ArgumentError: the report is inconclusive or was read from a file, or the folder
                exists.
            EvidenceError: the evidence would not convince, e.g. since the model was never
                exported.
        """
        owner = self._authority
        write_evidence(
            report,
            directory,
            keys=owner.keys,
            ledger=owner.ledger,
            users=owner.user_store,
            models=owner.model_store,
        )

    def _record(self, model: Any) -> ModelRecord:
        """What the ledger keeps of a protected model, given it or its name."""
        if isinstance(model, str):
            return self._authority.model_store.model_named(model)
        codebook = getattr(model, "codebook", None)
        if not isinstance(codebook, str):
            raise ArgumentError(
                f"`model` must be a protected model or its name. Received: {type(model).__name__}"
            )
        codebook_id = Codebook.from_bytes(codebook.encode("ascii")).codebook_id
        return self._authority.model_store.model_of(codebook_id)


def _findings(**facts: Any) -> Findings:
    return Findings(at=now_text(), significance=SIGNIFICANCE, **facts)
