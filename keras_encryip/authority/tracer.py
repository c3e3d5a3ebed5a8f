"""Find out who leaked a key, a decode table, weights, or runs a service on them."""

import os
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from keras_encryip.authority.authority import Authority, check_authority
from keras_encryip.authority.earlier_evidence import EarlierEvidence
from keras_encryip.authority.trace_answers import trace_service, trace_table
from keras_encryip.authority.trace_keys import trace_bundle, trace_combined_key, trace_key
from keras_encryip.authority.write_evidence import write_evidence
from keras_encryip.client.decoder import Decoder
from keras_encryip.crypto.kem import UserKey
from keras_encryip.errors import ArgumentError
from keras_encryip.formats.key_bundle import KeyBundle
from keras_encryip.formats.key_pair import X25519PrivateKey
from keras_encryip.formats.progress import progress_bar
from keras_encryip.labels.codebook import Codebook
from keras_encryip.labels.model_record import ModelRecord
from keras_encryip.tracing.alignment import match, read_reference, score_copies
from keras_encryip.tracing.fingerprint import kernels_digest, p_value
from keras_encryip.tracing.report import MAX_SCORES, MAX_SHOWN, Findings, Suspect, TraceReport
from keras_encryip.tracing.service.query import Predict
from keras_encryip.tracing.statistics import corrected
from keras_encryip.tracing.weights import read_kernels


class Tracer:
    """Names the users behind what was leaked. docs/guides/tracing.md says what each method proves.

    Args:
        authority: the open authority that protected the model and issued the keys.

    Example:
    >>> tracer = Tracer(authority)
    >>> tracer.bundle(folder / "alice.keybundle").verdict
    'identified'
    >>> tracer.bundle(folder / "alice.keybundle", "correct horse").guilty[0].subject
    'alice'
    """

    def __init__(self, authority: Authority) -> None:
        self._authority = check_authority(authority)

    # --- keys --------------------------------------------------------------------

    def bundle(
        self,
        bundle: str | os.PathLike[str] | KeyBundle,
        passphrase: str | None = None,
        private_key: X25519PrivateKey | None = None,
    ) -> TraceReport:
        """Whose key bundle this is.

        A sealed bundle names its user, and proves nothing against them: others saw it on its
        way. Opened, its keys are compared with what was issued.

        Args:
            bundle: path of a key bundle, or one already read.
            passphrase: opens the bundle, if it leaked, too; or
            private_key: the one that the bundle was made to.

        Returns:
            A report with verdict `"identified"` for a sealed bundle.

        Raises:
            ForeignKeyError: another authority issued it.
            PassphraseError, KeyRefusedError: it does not open.
            FormatError, SignatureError: malformed, changed or forged.

        Example:
        >>> report = Tracer(authority).bundle(folder / "alice.keybundle", "correct horse")
        >>> report.verdict, report.guilty[0].subject
        ('guilty', 'alice')
        """
        if not isinstance(bundle, KeyBundle):
            bundle = KeyBundle.read(bundle)
        return trace_bundle(self._authority, bundle, passphrase, private_key)

    def key(self, key: UserKey | bytes | None, slot_keys: Any | None = None) -> TraceReport:
        """Whose key this point (z, P(z)) is, and whose slot keys these are.

        A point at a revoked user's z identifies, and does not convict: such z are public. Slot
        keys that several users pooled convict those whose codewords they follow. The content of
        a locked export's key file names whose copy it opens, and does not convict: every host who
        has that copy can make it.

        Args:
            key: a `UserKey`, or its 64 bytes z ‖ P(z); the 32 bytes of a key file; `None` if only
                slot keys are known.
            slot_keys: one key of 16 bytes for each of the authority's slots, `[M, 16]`; zeros, -1
                or `None` where it is unknown.

        Returns:
            A report of kind `"key"`; its verdict is `"inconclusive"` for keys of nobody.

        Raises:
            ArgumentError: neither was given, or of another form or number.

        Example:
        >>> report = Tracer(authority).key(leaked_key)
        >>> report.verdict, report.guilty[0].subject
        ('guilty', 'alice')
        """
        return trace_key(self._authority, key, slot_keys)

    def combined_key(self, weights: Sequence[int], nodes: Sequence[int]) -> TraceReport:
        """Who combined their keys into weights that open a header.

        Names all of up to ⌊t/2⌋ traitors (one for t = 1). More than that are not named,
        and nobody else is. A user revoked earlier is identified and not convicted: their z stands
        in public headers, so that t + 2 − ⌊t/2⌋ traitors could frame them.

        Args:
            weights: t + 1 integers (w_0; w_1 … w_t) with S = w_0·R + Σ w_j·H_j.
            nodes: the t nodes x_j of that header, in its order.

        Returns:
            A report of kind `"combined key"`.

        Raises:
            ArgumentError: another number of them, or what are no integers.

        Example:
        >>> report = Tracer(authority).combined_key(combined_weights, nodes)
        >>> [suspect.subject for suspect in report.guilty]
        ['alice']
        """
        return trace_combined_key(self._authority, weights, nodes)

    # --- answers -----------------------------------------------------------------

    def table(self, table: np.ndarray | Decoder, *, model: Any) -> TraceReport:
        """Whose decode table this is, pulled out of an application.

        Args:
            table: int `[N]`, the class of each confused label; -1 where unknown.
            model: the protected model, or its name (then the newest of that name).

        Returns:
            A report of kind `"table"`.

        Raises:
            ArgumentError: another length, or classes that the model does not have.
            LedgerError: the model is unknown.

        Example:
        >>> report = Tracer(authority).table(leaked_table, model="digits")
        >>> report.verdict, report.guilty[0].subject
        ('guilty', 'alice')
        """
        return trace_table(self._authority, self._record(model), table)

    def service(
        self,
        predict: Predict | str,
        *,
        model: Any,
        inputs: np.ndarray | None = None,
        decoder: Decoder | None = None,
        transcript: str | os.PathLike[str] | None = None,
        batch_size: int = 16,
    ) -> TraceReport:
        """Whose key a service runs on, from the labels it answers.

        Sends the model's trace inputs in random order. Refused, failed and unreadable
        answers count as none. A service that gives probabilities is asked natural inputs, too, if
        `model` is the model itself: the small probability that live labels have on any input shows
        whose key it is, without the trace inputs.

        A service that forwards its questions to a key holder's own application makes that holder
        look guilty: nothing in the answers tells the two apart.

        Args:
            predict: a function from inputs `[b, …]` to b classes, class names, or rows of
                probabilities, `None` for a refusal; or the address of a model at TF
                Serving's REST API.
            model: the protected model, or its name (then the newest of that name).
            inputs: natural inputs `[m, …]`, m times K at most 2²⁰ and m times T at most 2²³; by
                default those that training kept. Not the owner's best-kept: the service sees them.
            decoder: reads the service's answers if these are confused labels. Any key reads
                them, so this shows whose model it is, and the decoder's user is no suspect.
            transcript: a file that keeps the answers, so that an interrupted or
                rate-limited run can go on.
            batch_size: inputs per request, ≥ 1.

        Returns:
            A report of kind `"service"`.

        Raises:
            ServiceError: the service answered nothing that can be read.
            LedgerError: the model is unknown, or was never trained.

        Example:
        >>> report = Tracer(authority).service(suspicious_service, model="digits")
        >>> print(report.verdict, report.guilty[0].subject)
        guilty alice
        """
        if decoder is not None and not isinstance(decoder, Decoder):
            raise ArgumentError(
                "`decoder` must be a Decoder, from `Decoder.open(model, bundle, passphrase)`. "
                f"Received: {type(decoder).__name__}"
            )
        return trace_service(
            self._authority,
            self._record(model),
            predict,
            model=None if isinstance(model, str) else model,
            inputs=inputs,
            decoder=decoder,
            transcript=transcript,
            batch_size=batch_size,
        )

    # --- weights -----------------------------------------------------------------

    def weights(self, suspect: Any, *, model: Any, reference: Any = None) -> TraceReport:
        """Whose personalised copy these weights come from.

        Tests the users for whom the model was exported with `recipient=…`. Takes copies
        that were fine-tuned, pruned, quantised, averaged over several users' copies, or
        whose hidden units were permuted.

        Args:
            suspect: a SavedModel folder, also a locked one, a `.keras`, `.weights.h5` or `.npz`
                file, a list or dictionary of arrays, or a Keras model.
            model: the protected model, or its name (then the newest of that name).
            reference: the weights before they were marked, in any form of `suspect`. By
                default those of `model`, if it is a model; without any, tracing is blind,
                and much weaker.

        Returns:
            A report of kind `"weights"`.

        Raises:
            LedgerError: the model was never exported for a recipient.
            ArgumentError, FormatError: weights that cannot be read, or of another model.

        Example:
        >>> report = Tracer(authority).weights(leaked_kernels, model=model)
        >>> report.verdict, report.guilty[0].subject, report.guilty[0].score > 10
        ('guilty', 'alice', True)
        """
        record = self._record(model)
        recipients, shapes, digests = self._authority.export_store.copies_of(record)
        if reference is None and not isinstance(model, str):
            reference = model
        exports = self._authority.export_store
        kernels = read_kernels(suspect, exports.content_keys())
        originals = None
        if reference is not None:
            originals = read_reference(reference, shapes, exports.content_keys())
        matched = match(kernels, shapes if originals is None else originals)
        keys = self._authority.keys
        marks = {k: keys.fingerprint_key(record.model_id, k) for k in recipients}
        orders = 1 if originals is None else 2
        with progress_bar("correlating with recipients' marks", orders * len(marks)) as advance:
            result = score_copies(matched, originals, marks, advance)
        ranked = sorted(result.scores, key=lambda recipient: -result.scores[recipient])
        tests = len(marks) * result.looks
        earlier = EarlierEvidence.read(self._authority.ledger)
        suspects = []
        for k in ranked:
            z = result.scores[k]
            suspect = Suspect(*recipients[k], z, corrected(p_value(z), tests))
            if (record.model_id, k) in earlier.marks:  # anybody can mark weights with it
                suspect = msgspec.structs.replace(suspect, p_value=1.0, identified=suspect.guilty)
            suspects.append(suspect)
        suspects.sort(key=lambda s: (s.p_value, -s.score))
        stated = "blind: none given"
        if originals is not None:
            exported = kernels_digest(originals) in digests
            stated = "as exported" if exported else "given, not what was exported"
        shown = suspects[: max(MAX_SHOWN, sum(s.guilty for s in suspects))]
        shown += [s for s in suspects if s.identified and s not in shown]
        findings = Findings.now(
            evidence={
                "kernels found": f"{sum(k is not None for k in result.kernels)} of {len(shapes)}",
                "original weights": stated,
                **earlier.stated((s.key_id, s.subject) for s in shown if s.identified),
            },
            kind="weights",
            model=record.metadata.model,
            score_name="standard deviations",
            scores=[result.scores[k] for k in ranked[:MAX_SCORES]],
            suspects=shown,
            tested=len(marks),
            tests=tests,
            threshold=result.threshold,
        )
        exhibits = {
            "record": record,
            "suspect": result.kernels,
            "reference": originals,
            "earlier": earlier.events,
        }
        return TraceReport(findings, exhibits)

    # --- verdicts ----------------------------------------------------------------

    def evidence(self, report: TraceReport, directory: str | os.PathLike[str]) -> None:
        """Write a folder that anybody can check with `encryip verify-evidence`.

        It shows the leaked material, what this authority had committed to before, and the
        accused users' bits and slot keys at the trace labels' slots, or their marks. It shows
        nothing about other users. Whoever has it can imitate the accused there, so the log
        says what it opens, and later traces do not count that against them. Hand it to a
        court or an expert, not to the public. Exporting anew does not help, since a model keeps
        its slots: protect anew.

        Args:
            report: of this authority's tracer, with a guilty user.
            directory: a new folder; it appears whole or not at all.

        Raises:
            ArgumentError: the report is inconclusive or was read from a file, or the folder
                exists.
            EvidenceError: the evidence would not convince, e.g. since the model was never
                exported.

        Example:
        >>> tracer = Tracer(authority)
        >>> report = tracer.bundle(folder / "alice.keybundle", "correct horse")
        >>> tracer.evidence(report, folder / "evidence")
        >>> sorted(path.name for path in (folder / "evidence").iterdir())
        ['report.json', 'statement.json']
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
