"""Find out who leaked a key, a decode table, weights, or runs a service on them."""

import os
from collections.abc import Sequence
from typing import Any, Final

import msgspec
import numpy as np
import sqlalchemy as sa

from keras_encryip.formats.key_bundle import KeyBundle
from keras_encryip.client.decoder import Decoder
from keras_encryip.formats.progress import progress_bar
from keras_encryip.crypto.encoding import decode_scalar
from keras_encryip.crypto.kem import UserKey, key_id
from keras_encryip.crypto.combined_key import CombinedKey, find_traitors
from keras_encryip.errors import ArgumentError, ForeignKeyError, LedgerError
from keras_encryip.labels.codebook import Codebook
from keras_encryip.authority.predicted_answers import PredictedAnswers, DamagedCacheError
from keras_encryip.tracing.service.query import UNANSWERED, Predict, ask
from keras_encryip.labels.model_record import ModelRecord
from keras_encryip.authority.model_store import now_text
from keras_encryip.authority.schema import REVOKED
from keras_encryip.authority.write_evidence import write_evidence
from keras_encryip.authority.export_store import Exports
from keras_encryip.authority.schema import codebooks_table, exports_table, users_table
from keras_encryip.tracing.weights import align, kernels_of, match, read_kernels
from keras_encryip.tracing.fingerprint import kernels_digest
from keras_encryip.tracing.fingerprint import p_value, correlate, whiten
from keras_encryip.tracing.report import MAX_SCORES, MAX_SHOWN, Findings, Suspect, TraceReport
from keras_encryip.tracing.statistics import SIGNIFICANCE, binomial_tail, corrected, least_hits
from keras_encryip.labels.trace_set import plurality

FORGERY: Final = 2.0**-128
"""Stated chance of a forged signature, or of a point of P that was never issued."""


class Tracing(Exports):
    """The tracing half of an `Authority`. docs/tracing.md says what each method proves."""

    __slots__ = ()

    # --- keys --------------------------------------------------------------------

    def trace_bundle(self, bundle: str | os.PathLike[str] | KeyBundle) -> TraceReport:
        """Whose key bundle this is. Its passphrase is not needed.

        Args:
            bundle: path of a key bundle, or one already read.

        Raises:
            ForeignKeyError: another authority issued it.
            FormatError, SignatureError: malformed, changed or forged.
        """
        if not isinstance(bundle, KeyBundle):
            bundle = KeyBundle.read(bundle)
        if bundle.issuer != self.issuer or bundle.authority != self.public_key.digest:
            raise ForeignKeyError(
                f"Key bundle {bundle.header.key_id} was issued by another authority: "
                f"{bundle.header.issuer_name!r}."
            )
        evidence = {"signed by": self.name, "subject in the bundle": bundle.header.subject}
        return self._key_report("bundle", [bundle.header.key_id], evidence, bundle)

    def trace_key(self, key: UserKey | bytes) -> TraceReport:
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
        on_polynomial = self._master.user_key(key.z).secret_bytes() == key.secret_bytes()
        evidence = {"on the owner's polynomial": "yes" if on_polynomial else "no: not a key"}
        found = [key.key_id] if on_polynomial else []
        report = self._key_report("key", found, evidence, key)
        if on_polynomial and not report.suspects:
            report.evidence["never issued"] = (
                f"a fresh point: at least {self.threshold + 1} users pooled their keys"
            )
        return report

    def trace_combined_key(self, weights: Sequence[int], nodes: Sequence[int]) -> TraceReport:
        """Who combined their keys into weights that open a header.

        Names all of up to ⌊t/2⌋ traitors (one for t = 1). More than that are not named,
        and nobody else is. A user revoked earlier is named with p-value 1: their z stands in
        public headers, so that t + 2 − ⌊t/2⌋ traitors could frame them.

        Args:
            weights: t + 1 integers (w_0; w_1 … w_t) with S = w_0·R + Σ w_j·H_j.
            nodes: the t nodes x_j of that header, in its order.
        """
        combined = CombinedKey(nodes, weights)
        if len(combined.nodes) != self.threshold:
            raise ArgumentError(
                f"`nodes` must hold threshold={self.threshold} integers. "
                f"Received: {len(combined.nodes)}"
            )
        with self._ledger.reading() as connection:
            rows = connection.execute(sa.select(users_table.c.z)).scalars().all()
        issued = [decode_scalar(z, what="z") for z in rows]
        found = find_traitors(combined, issued, self._master.user_key)
        evidence = {
            "at most this many are found": max(1, self.threshold // 2),
            "keys combined": len(found) or "unknown: too many, or not made from keys",
        }
        exhibit = {"nodes": combined.nodes, "weights": tuple(weights)}
        return self._key_report("combined key", [key_id(z) for z in found], evidence, exhibit)

    def _key_report(
        self, kind: str, key_ids: Sequence[str], evidence: dict[str, Any], exhibit: Any
    ) -> TraceReport:
        u = users_table.c
        with self._ledger.reading() as connection:
            tested = connection.execute(sa.select(sa.func.count(u.user_id))).scalar_one()
            rows = connection.execute(sa.select(users_table).where(u.key_id.in_(key_ids))).all()
        public = {row.key_id for row in rows if row.status == REVOKED} if len(key_ids) else set()
        suspects = []
        for row in sorted(rows, key=lambda row: row.user_id):
            framed = kind == "combined key" and row.key_id in public
            chance = 1.0 if framed else corrected(FORGERY, tested)
            suspects.append(Suspect(row.subject, row.key_id, row.status, 1.0, chance))
        suspects.sort(key=lambda suspect: suspect.p_value)
        findings = Findings(
            at=now_text(),
            evidence=evidence,
            kind=kind,
            model="",
            score_name="match",
            scores=[s.score for s in suspects] + [0.0] * min(tested - len(suspects), MAX_SCORES),
            significance=SIGNIFICANCE,
            suspects=suspects,
            tested=tested,
            tests=max(1, tested),
            threshold=1.0,
        )
        return TraceReport(findings, {"key": exhibit})

    def evidence(self, report: TraceReport, directory: str | os.PathLike[str]) -> None:
        """Write a folder that anybody can check with `encryip verify-evidence`.

        It shows the leaked material, what this authority had committed to before, and what
        the accused users' keys make of it; no key, and nothing about other users. It does
        show the trace inputs, tracing blocks and marks that it rests on: hand it to a
        court or an expert, not to the public, and export anew afterwards.

        Args:
            report: from a `trace_…` method of this authority, with a guilty user.
            directory: a new folder; it appears whole or not at all.

        Raises:
            ArgumentError: the report is inconclusive or was read from a file, or the folder
                exists.
            EvidenceError: the evidence would not convince, e.g. since the model was never
                exported.
        """
        write_evidence(self, report, directory)

    # --- answers -----------------------------------------------------------------

    def trace_table(self, table: np.ndarray | Decoder, *, model: Any) -> TraceReport:
        """Whose decode table this is, pulled out of an application.

        Args:
            table: int `[N]`, the class of each confused label; -1 where unknown.
            model: the protected model, or its name (then the newest of that name).
        """
        record = self._model(model)
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
        codebooks = self.codebooks_of(record.model_id)
        orders = [self.assignment_of(codebook) for codebook in codebooks]
        meant = np.repeat(np.arange(classes), record.assignment.homophones)
        distinct = {order.secret_bytes(): order.labels.ravel() for order in orders}
        own = self._ownership([(values[labels], meant) for labels in distinct.values()], classes)
        observed = [[values[order.trace]] for order in orders]
        return self._answers_report("table", record, codebooks, observed, own, {"table": values})

    def trace_service(
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
        >>> report = authority.trace_service(suspicious_service, model="digits")
        >>> print(report.verdict, report.guilty[0].subject)
        guilty alice
        """
        record = self._model(model)
        sets = self.trace_sets_of(record)
        if not sets:
            raise LedgerError(
                f"Model {record.metadata.model!r} has no trace inputs: it was not trained yet, or "
                "was protected with `trace_labels=0`."
            )
        inputs = np.concatenate([traces.inputs for traces in sets])
        with progress_bar("asking the service", len(inputs)) as advance:
            done = 0

            def report_progress(answered: int, total: int) -> None:
                nonlocal done
                advance(answered - done)
                done = answered

            answers = ask(
                predict,
                inputs,
                class_names=record.metadata.class_names,
                decoder=decoder,
                transcript=transcript,
                batch_size=batch_size,
                progress=report_progress,
            )
        parts = np.split(answers, np.cumsum([len(traces.labels) for traces in sets])[:-1])
        classes = record.assignment.classes
        observed, said, meant = [], [], []
        for traces, part in zip(sets, parts, strict=True):
            observed.append(plurality(traces, part, record.assignment.trace))
            ordinary = classes[traces.labels] >= 0
            said.append(part[ordinary])
            meant.append(classes[traces.labels[ordinary]])
        own = self._ownership(
            [(np.concatenate(said), np.concatenate(meant))], record.assignment.num_classes
        )
        own["unanswered"] = int((answers == UNANSWERED).sum())
        codebooks = self.codebooks_of(record.model_id)
        exhibit = {"sets": sets, "answers": parts}
        every = [observed] * len(codebooks)  # answers to an input: the same in every order
        return self._answers_report("service", record, codebooks, every, own, exhibit)

    @staticmethod
    def _ownership(
        readings: list[tuple[np.ndarray, np.ndarray]], num_classes: int
    ) -> dict[str, Any]:
        """Whether this is the model at all: answers that are alike under every key.

        Args:
            readings: (said, meant) in each order that the model's labels had; the best counts.
        """
        found = []
        for said, meant in readings:
            n, hits = int((said >= 0).sum()), int(((said == meant) & (said >= 0)).sum())
            # Terms far out underflow; a thousand answers prove as much as a million.
            counted = min(n, 4096)
            tail = binomial_tail(counted, num_classes)
            found.append((float(tail[hits * counted // n if n else 0]), hits, n))
        chance, hits, n = min(found)
        chance = min(1.0, chance * len(readings))
        return {
            "this is the model": "yes" if chance <= SIGNIFICANCE else "not shown",
            "p-value of that": chance,
            "ordinary answers right": f"{hits} of {n}",
        }

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
        classes = record.assignment.num_classes
        tests = sum(map(len, observed))
        chances: list[np.ndarray] = []
        hits: list[np.ndarray] = []
        for codebook, answers in zip(codebooks, observed, strict=True):
            for said, found in zip(answers, self._coincidences(codebook, answers), strict=True):
                n = int((said >= 0).sum())
                hits.append(found)
                chances.append(binomial_tail(n, classes)[found])
        # Users who were added meanwhile are in the later codebooks' counts only.
        least = min((len(found) for found in hits), default=0)
        chances, hits = [c[:least] for c in chances], [h[:least] for h in hits]
        best = np.argmin(chances, axis=0) if hits and hits[0].size else np.zeros(0, int)
        users = len(best)
        rows = np.arange(users)
        chance = np.array(chances)[best, rows] if users else np.zeros(0)
        score = np.array(hits)[best, rows] if users else np.zeros(0, int)
        order = np.lexsort((-score, chance))
        final = np.minimum(1.0, chance * users * tests)
        shown = order[: max(MAX_SHOWN, int((final <= SIGNIFICANCE).sum()))]
        most = max(int((said >= 0).sum()) for answers in observed for said in answers)
        evidence = {
            "trace labels answered": most,
            "classes": classes,
            "codebooks tested": len(codebooks),
            **evidence,
        }
        findings = Findings(
            at=now_text(),
            evidence=evidence,
            kind=kind,
            model=record.metadata.model,
            score_name="coincidences",
            scores=[float(s) for s in score[order[:MAX_SCORES]]],
            significance=SIGNIFICANCE,
            suspects=self._suspects(shown, score[shown], final[shown]),
            tested=users,
            tests=max(1, users * tests),
            threshold=float(least_hits(most, classes, users * tests)),
        )
        each = len(observed[0])
        proof = {int(position): divmod(int(best[position]), each) for position in shown}
        keys = [suspect.key_id for suspect in findings.suspects]
        named = {k: proof[int(p)] for k, p in zip(keys, shown, strict=True)}
        return TraceReport(
            findings, {**exhibits, "record": record, "codebooks": codebooks, "best": named}
        )

    def _coincidences(self, codebook: Codebook, observed: list[np.ndarray]) -> list[np.ndarray]:
        """For each list of observed answers `[T]`: int `[users]`, agreements with each user's."""
        cache = self.answer_cache(codebook)
        try:
            return self._count(cache, observed)
        except DamagedCacheError:
            with self._ledger.writing() as connection:
                cache.drop(connection)
        return self._count(cache, observed)

    def _count(self, cache: PredictedAnswers, observed: list[np.ndarray]) -> list[np.ndarray]:
        with self._ledger.reading() as connection:
            missing = cache.missing(connection)
        with progress_bar("predicting users' answers", missing) as advance:
            while True:
                with self._ledger.writing() as connection:
                    added = cache.extend(connection)
                if not added:
                    break
                advance(added)
        answered = [np.flatnonzero(o >= 0) for o in observed]
        found: list[list[np.ndarray]] = [[] for _ in observed]
        with self._ledger.reading() as connection:
            for _, answers in cache.read(connection):
                for out, o, which in zip(found, observed, answered, strict=True):
                    own = o[which].astype(answers.dtype)
                    out.append((answers[:, which] == own).sum(1))
        return [np.concatenate(parts) if parts else np.zeros(0, int) for parts in found]

    def _suspects(
        self, positions: np.ndarray, scores: np.ndarray, chances: np.ndarray
    ) -> list[Suspect]:
        """Users by their position in the order of issue."""
        suspects = []
        with self._ledger.reading() as connection:
            for position, score, chance in zip(positions, scores, chances, strict=True):
                row = connection.execute(
                    sa.select(users_table)
                    .order_by(users_table.c.user_id)
                    .offset(int(position))
                    .limit(1)
                ).one()
                suspects.append(
                    Suspect(row.subject, row.key_id, row.status, float(score), float(chance))
                )
        return suspects

    # --- weights -----------------------------------------------------------------

    def trace_weights(self, suspect: Any, *, model: Any, reference: Any = None) -> TraceReport:
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
        record = self._model(model)
        recipients, shapes, digests = self._recipients(record)
        if reference is None and not isinstance(model, str):
            reference = model
        found = read_kernels(suspect)
        originals = None if reference is None else _read_reference(reference, shapes)
        candidates = [match(found, shapes if originals is None else originals)]
        keys = {k: self.fingerprint_key(record.model_id, k) for k in recipients}
        scores = self._correlate(candidates[0], originals, keys)
        looks = 1 if originals is None else 2
        least = float(np.sqrt(2 * np.log(len(keys) * looks / SIGNIFICANCE)))
        if originals is not None:
            # One kernel left in order can convict one of several; the others need them all.
            candidates.append(align(candidates[0], originals))
            if any(a is not b for a, b in zip(*candidates, strict=True)):
                again = self._correlate(candidates[1], originals, keys)
                named, more = (sum(z >= least for z in s.values()) for s in (scores, again))
                if (more, max(again.values())) > (named, max(scores.values())):
                    scores = again
                    candidates.reverse()
        ranked = sorted(scores, key=lambda key: -scores[key])
        tests = len(keys) * looks
        suspects = [
            Suspect(*recipients[k], scores[k], corrected(p_value(scores[k]), tests)) for k in ranked
        ]
        stated = "blind: none given"
        if originals is not None:
            exported = kernels_digest(originals) in digests
            stated = "as exported" if exported else "given, not what was exported"
        findings = Findings(
            at=now_text(),
            evidence={
                "kernels found": f"{sum(k is not None for k in candidates[0])} of {len(shapes)}",
                "original weights": stated,
            },
            kind="weights",
            model=record.metadata.model,
            score_name="standard deviations",
            scores=[scores[k] for k in ranked[:MAX_SCORES]],
            significance=SIGNIFICANCE,
            suspects=suspects[: max(MAX_SHOWN, sum(s.guilty for s in suspects))],
            tested=len(keys),
            tests=tests,
            threshold=least,
        )
        exhibits = {"record": record, "suspect": candidates[0], "reference": originals}
        return TraceReport(findings, exhibits)

    def _recipients(
        self, record: ModelRecord
    ) -> tuple[dict[str, tuple[str, str, str]], list[tuple[int, ...]], set[str]]:
        """Who was given copies: key id → (subject, key id, status); kernels' shapes and digests."""
        e, c, u = exports_table.c, codebooks_table.c, users_table.c
        with self._ledger.reading() as connection:
            rows = connection.execute(
                sa.select(e.recipient, e.kernels, e.kernels_digest, u.subject, u.status)
                .join(codebooks_table)
                .join(users_table, u.key_id == e.recipient)
                .where(c.model_id == record.model_id)
                .order_by(e.export_id)
            ).all()
        if not rows:
            raise LedgerError(
                f"Model {record.metadata.model!r} was never exported with `recipient=...`: its "
                "weights carry nobody's mark."
            )
        shapes = [tuple(shape) for shape in msgspec.json.decode(rows[-1].kernels)]
        recipients = {row.recipient: (row.subject, row.recipient, row.status) for row in rows}
        return recipients, shapes, {row.kernels_digest for row in rows}

    @staticmethod
    def _correlate(
        suspect: Sequence[np.ndarray | None],
        reference: Sequence[np.ndarray] | None,
        keys: dict[str, bytes],
    ) -> dict[str, float]:
        """Standard deviations of every recipient."""
        blind: list[np.ndarray | None] = [None] * len(suspect)
        residual = whiten(suspect, blind if reference is None else reference)
        scores = {}
        with progress_bar("correlating with recipients' marks", len(keys)) as advance:
            for recipient, key in keys.items():
                scores[recipient] = correlate(residual, key)
                advance(1)
        return scores

    def _model(self, model: Any) -> ModelRecord:
        if isinstance(model, str):
            return self.model_named(model)
        codebook = getattr(model, "codebook", None)
        if not isinstance(codebook, str):
            raise ArgumentError(
                f"`model` must be a protected model or its name. Received: {type(model).__name__}"
            )
        return self.model_of(Codebook.from_bytes(codebook.encode("ascii")).codebook_id)


def _read_reference(source: Any, shapes: list[tuple[int, ...]]) -> list[np.ndarray]:
    """The original's kernels in the order in which they were marked."""
    if hasattr(source, "weights"):
        kernels = [np.asarray(kernel) for kernel in kernels_of(source)]
    else:
        kernels = [k for k in match(read_kernels(source), shapes) if k is not None]
    if [kernel.shape for kernel in kernels] != shapes:
        raise ArgumentError(
            "`reference` must be the model as it was exported: its kernels have other shapes. "
            f"Received: {[kernel.shape for kernel in kernels]}"
        )
    return kernels
