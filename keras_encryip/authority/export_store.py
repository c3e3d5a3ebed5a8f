"""What the ledger keeps of exports: whom a copy was marked for, and what was committed to."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
import sqlalchemy as sa

from keras_encryip.authority.event_log import append_event, signed_events
from keras_encryip.authority.keys import AuthorityKeys
from keras_encryip.authority.ledger import Ledger
from keras_encryip.authority.model_store import ModelStore
from keras_encryip.authority.schema import (
    codebooks_table,
    events_table,
    exports_table,
    users_table,
)
from keras_encryip.crypto.encoding import canonical_json
from keras_encryip.errors import LedgerError
from keras_encryip.formats.lock import Lock
from keras_encryip.labels.codebook import Codebook
from keras_encryip.labels.model_record import ModelRecord
from keras_encryip.labels.trace_set import TraceSet
from keras_encryip.tracing.events import MODEL_EXPORTED
from keras_encryip.tracing.fingerprint import fingerprint_commitment, kernels_digest


class ExportStore:
    """The exports in an authority's ledger.

    Args:
        ledger: where they are kept.
        keys: of whom they are.
        model_store: the models that were exported.
    """

    def __init__(self, ledger: Ledger, keys: AuthorityKeys, model_store: ModelStore) -> None:
        self._ledger = ledger
        self._keys = keys
        self._model_store = model_store

    def was_exported(self, model_id: int, kernels: Sequence[np.ndarray], traces: TraceSet) -> bool:
        """Whether a model was exported with exactly these kernels and trace inputs."""
        e, c = exports_table.c, codebooks_table.c
        query = (
            sa.select(e.export_id)
            .join(codebooks_table)
            .where(
                c.model_id == model_id,
                e.kernels_digest == kernels_digest(kernels),
                e.trace_set == traces.digest,
            )
        )
        with self._ledger.reading() as connection:
            return connection.execute(query.limit(1)).first() is not None

    def add_export(
        self,
        codebook: Codebook,
        manifest: bytes,
        *,
        folder: str,
        recipient: str | None,
        kernels: Sequence[np.ndarray],
        lock: Lock | None = None,
    ) -> None:
        """Commit to what is about to be exported, in the signed and dated event log.

        Args:
            manifest: the bytes of `manifest.json`, which covers every file.
            folder: the folder's name.
            recipient: key id of the user whose copy this is, or `None`.
            kernels: the model's kernels, before they are marked for the recipient.
            lock: of a locked export.
        """
        record = self._model_store.model_of(codebook.codebook_id)
        digest = record.traces.digest if record.traces is not None else None
        facts: dict[str, Any] = {
            "trace_set": digest.hex() if digest else "",
            "kernels_digest": kernels_digest(kernels),
        }
        if recipient is not None:
            key = self._keys.fingerprint_key(record.model_id, recipient)
            facts |= {"recipient": recipient, "fingerprint": fingerprint_commitment(key)}
        shapes = canonical_json([list(k.shape) for k in kernels]).decode("ascii")
        self._commit(record, codebook, manifest, folder, facts, digest, shapes, lock)

    def copies_of(
        self, record: ModelRecord
    ) -> tuple[dict[str, tuple[str, str, str]], list[tuple[int, ...]], set[str]]:
        """Who was given personalised copies of a model, and of what.

        Returns:
            (key id → (subject, key id, status), shapes of the kernels in order, digests of the
            kernels before they were marked).

        Raises:
            LedgerError: nobody was.
        """
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

    def exported(self, manifest: bytes) -> tuple[dict[str, Any], Any]:
        """What was committed to when a folder was exported, and the export's row.

        Args:
            manifest: the bytes of the folder's `manifest.json`.

        Raises:
            LedgerError: this authority did not export it.
        """
        digest = hashlib.sha256(manifest).hexdigest()
        e = exports_table.c
        with self._ledger.reading() as connection:
            events = signed_events(connection, events_table.c.kind == MODEL_EXPORTED)
            for number, (event, _, _) in enumerate(events, 1):
                if event.details["manifest_digest"] == digest:
                    row = connection.execute(sa.select(exports_table).where(e.export_id == number))
                    return event.details, row.one()
        raise LedgerError(
            f"The authority {self._ledger.name!r} did not export the folder that is to be rotated."
        )

    def add_reordered_export(
        self,
        codebook: Codebook,
        manifest: bytes,
        *,
        folder: str,
        source: bytes,
        lock: Lock | None = None,
    ) -> None:
        """Commit to an exported folder's reordered copy: `add_export` of what it was made from.

        Args:
            source: the bytes of the `manifest.json` it was made from.

        Raises:
            LedgerError: this authority did not export the source.
        """
        old, row = self.exported(source)
        record = self._model_store.model_of(codebook.codebook_id)
        names = ("kernels_digest", "recipient", "fingerprint")
        facts = {name: old[name] for name in names if name in old} | {"trace_set": ""}
        if row.trace_set is not None:
            traces = self._model_store.trace_set(row.trace_set)
            moved = traces.renumbered(
                record.assignment.moved_to(self._model_store.assignment_of(codebook))
            )
            facts |= {"trace_set": moved.digest.hex(), "model_trace_set": traces.digest.hex()}
        self._commit(record, codebook, manifest, folder, facts, row.trace_set, row.kernels, lock)

    def locks(self) -> list[tuple[Lock, str | None, str, str]]:
        """Of every locked export, oldest first: its lock, its recipient's key id or `None`, the
        folder's name, and when it was made."""
        with self._ledger.reading() as connection:
            query = sa.select(exports_table.c.lock, exports_table.c.recipient).order_by(
                exports_table.c.export_id
            )
            rows = connection.execute(query).all()
            events = signed_events(connection, events_table.c.kind == MODEL_EXPORTED)
            told = [(event.details["folder"], event.at) for event, _, _ in events]
        return [
            (Lock.from_bytes(row.lock), row.recipient, *said)
            for row, said in zip(rows, told, strict=True)
            if row.lock is not None
        ]

    def content_keys(self) -> Iterator[bytes]:
        """The keys of locked exports, newest first. Secret."""
        for lock, *_ in reversed(self.locks()):
            yield lock.content_key(self._keys.run_master)

    def _commit(
        self,
        record: ModelRecord,
        codebook: Codebook,
        manifest: bytes,
        folder: str,
        facts: dict[str, Any],
        trace_set: bytes | None,
        kernels: str,
        lock: Lock | None,
    ) -> None:
        if lock is not None:
            facts = facts | {"lock": hashlib.sha256(lock.to_bytes()).hexdigest()}
        with self._ledger.writing() as connection:
            connection.execute(
                exports_table.insert().values(
                    codebook_id=codebook.codebook_id,
                    trace_set=trace_set,
                    recipient=facts.get("recipient"),
                    kernels_digest=facts["kernels_digest"],
                    kernels=kernels,
                    lock=None if lock is None else lock.to_bytes(),
                )
            )
            append_event(
                connection,
                self._keys,
                MODEL_EXPORTED,
                model=record.metadata.model,
                model_id=record.model_id,
                codebook=codebook.codebook_id.hex(),
                codebook_digest=hashlib.sha256(codebook.to_bytes()).hexdigest(),
                manifest_digest=hashlib.sha256(manifest).hexdigest(),
                public_key=self._keys.public_key.digest.hex(),
                folder=folder,
                **facts,
            )
