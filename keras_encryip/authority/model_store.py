"""What the ledger keeps of protected models: assignments, training states, codebooks."""

import hashlib
from typing import Any

import msgspec
import numpy as np
import sqlalchemy as sa

from keras_encryip.authority.event_log import append_event
from keras_encryip.authority.keys import AuthorityKeys
from keras_encryip.authority.ledger import Ledger
from keras_encryip.authority.schema import (
    codebooks_table,
    exports_table,
    models_table,
    revoked_users,
    trace_sets_table,
)
from keras_encryip.crypto.encoding import canonical_json
from keras_encryip.errors import LedgerError, SignatureError, instead_of
from keras_encryip.formats.lock import Lock
from keras_encryip.formats.text import check_name
from keras_encryip.labels.assignment import LabelAssignment
from keras_encryip.labels.codebook import Codebook, ModelMetadata
from keras_encryip.labels.live_labels import LiveLabel, live_commitment, live_labels
from keras_encryip.labels.model_record import ModelRecord
from keras_encryip.labels.trace_set import TraceSet
from keras_encryip.tracing.events import CODEBOOK_MADE, MODEL_PROTECTED, now_text


class ModelStore:
    """The protected models in an authority's ledger.

    Args:
        ledger: where they are kept.
        keys: what their secrets are sealed and their codebooks made with.
    """

    def __init__(self, ledger: Ledger, keys: AuthorityKeys) -> None:
        self._ledger = ledger
        self._keys = keys

    @property
    def num_slots(self) -> int:
        """M, the slots that labels lie on."""
        return self._keys.slots.count

    def names(self) -> list[str]:
        """Names of the models, in the order of protection; a name can recur."""
        with self._ledger.reading() as connection:
            query = sa.select(models_table.c.name).order_by(models_table.c.model_id)
            return list(connection.execute(query).scalars())

    def add_model(self, metadata: ModelMetadata, assignment: LabelAssignment) -> Codebook:
        """Keep a new model's assignment, and make its first codebook."""
        with self._ledger.writing() as connection:
            result = connection.execute(
                models_table.insert().values(
                    name=metadata.model,
                    created_at=now_text(),
                    sealed_metadata=b"",
                    sealed_assignment=b"",
                )
            )
            model_id = int(result.inserted_primary_key[0])  # type: ignore[index]
            self._seal_column(connection, model_id, "sealed_metadata", canonical_json(metadata))
            self._seal_column(connection, model_id, "sealed_assignment", assignment.secret_bytes())
            append_event(
                connection,
                self._keys,
                MODEL_PROTECTED,
                model=metadata.model,
                model_id=model_id,
            )
            return self._add_codebook(connection, model_id, metadata, assignment)

    def model_of(self, codebook_id: bytes) -> ModelRecord:
        """The model that a codebook was made for.

        Raises:
            LedgerError: this authority did not make that codebook.
        """
        with self._ledger.reading() as connection:
            row = connection.execute(
                sa.select(models_table)
                .join(codebooks_table)
                .where(codebooks_table.c.codebook_id == codebook_id)
            ).first()
        if row is None:
            raise LedgerError(
                f"The authority {self._ledger.name!r} did not protect this model "
                f"(codebook {codebook_id.hex()})."
            )
        return self._record(row)

    def model_named(self, name: str) -> ModelRecord:
        """The model protected last under a name.

        Raises:
            LedgerError: there is none.
        """
        name, m = check_name(name, "model"), models_table.c
        with self._ledger.reading() as connection:
            row = connection.execute(
                sa.select(models_table).where(m.name == name).order_by(m.model_id.desc()).limit(1)
            ).first()
        if row is None:
            known = ", ".join(map(repr, dict.fromkeys(self.names()))) or "none"
            raise LedgerError(
                f"The authority {self._ledger.name!r} has no model {name!r}. It has: {known}."
            )
        return self._record(row)

    def codebooks_of(self, model_id: int) -> list[Codebook]:
        """All codebooks of a model, oldest first."""
        c = codebooks_table.c
        with self._ledger.reading() as connection:
            rows = connection.execute(
                sa.select(c.public).where(c.model_id == model_id).order_by(c.number)
            ).all()
        return [Codebook.from_bytes(row.public) for row in rows]

    def trace_sets_of(self, record: ModelRecord) -> list[TraceSet]:
        """The trace inputs that a model was exported with, and those of now. Secret."""
        e, c = exports_table.c, codebooks_table.c
        with self._ledger.reading() as connection:
            digests = set(
                connection.execute(
                    sa.select(e.trace_set)
                    .join(codebooks_table)
                    .where(c.model_id == record.model_id, e.trace_set.is_not(None))
                ).scalars()
            )
        current = [] if record.traces is None else [record.traces]
        earlier = sorted(digests - {traces.digest for traces in current})
        return current + [self.trace_set(digest) for digest in earlier]

    def trace_set(self, digest: bytes) -> TraceSet:
        """The trace inputs with a digest. Secret."""
        t = trace_sets_table.c
        with self._ledger.reading() as connection:
            row = connection.execute(sa.select(t.sealed).where(t.digest == digest)).one()
        return TraceSet.from_secret_bytes(self._unseal(row.sealed, _trace_set_context(digest)))

    def _record(self, row: Any) -> ModelRecord:
        return ModelRecord(
            row.model_id,
            msgspec.json.decode(
                self._unseal(row.sealed_metadata, f"sealed_metadata {row.model_id}"),
                type=ModelMetadata,
            ),
            LabelAssignment.from_secret_bytes(
                self._unseal(row.sealed_assignment, f"sealed_assignment {row.model_id}")
            ),
            None
            if row.sealed_training is None
            else self._unseal(row.sealed_training, f"sealed_training {row.model_id}"),
            None if row.trace_set is None else self.trace_set(row.trace_set),
        )

    def save_training(self, model_id: int, state: bytes, traces: TraceSet | None) -> None:
        """Keep what training learned about the data and must not be in any model file.

        Trace sets of earlier trainings stay: exported models may know them.
        """
        digest = traces.digest if traces is not None else None
        t = trace_sets_table.c
        with self._ledger.writing() as connection:
            known = connection.execute(sa.select(t.digest).where(t.digest == digest)).first()
            if traces is not None and digest is not None and known is None:
                sealed = self._keys.seal(traces.secret_bytes(), _trace_set_context(digest))
                connection.execute(trace_sets_table.insert().values(digest=digest, sealed=sealed))
            self._seal_column(connection, model_id, "sealed_training", state)
            connection.execute(
                models_table.update()
                .where(models_table.c.model_id == model_id)
                .values(trace_set=digest)
            )

    def current_codebook(self, codebook_id: bytes, *, fresh: bool = False) -> Codebook:
        """The newest codebook of a model in its own order, for what the model itself exports.

        A new one if users were revoked since, or if `fresh`.
        """
        record = self.model_of(codebook_id)
        with self._ledger.writing() as connection:
            row = connection.execute(
                sa.select(codebooks_table)
                .where(
                    codebooks_table.c.model_id == record.model_id,
                    codebooks_table.c.sealed_assignment.is_(None),
                )
                .order_by(codebooks_table.c.number.desc())
                .limit(1)
            ).one()
            revoked = canonical_json(sorted(revoked_users(connection))).decode("ascii")
            if not fresh and row.revoked == revoked:
                codebook = Codebook.from_bytes(row.public)
                codebook.verify(self._keys.issuer)
                return codebook
            return self._add_codebook(
                connection, record.model_id, record.metadata, record.assignment
            )

    def reorder(self, codebook: Codebook) -> tuple[Codebook, np.ndarray]:
        """A new codebook of the same model, under a fresh assignment and today's revocations.

        Args:
            codebook: of this authority; what is exported under it is to be reordered.

        Returns:
            (the new codebook, int32 `[N]`: the new number of each label. Secret.)
        """
        record, before = self.model_of(codebook.codebook_id), self.assignment_of(codebook)
        assignment = before.redraw()
        with self._ledger.writing() as connection:
            new = self._add_codebook(
                connection, record.model_id, record.metadata, assignment, reordered=True
            )
        return new, before.moved_to(assignment)

    def assignment_of(self, codebook: Codebook) -> LabelAssignment:
        """How one of this authority's codebooks numbers the labels. Secret.

        As the model itself does, or, in a codebook that `reorder` made, in another order.
        """
        record = self.model_of(codebook.codebook_id)
        c = codebooks_table.c
        with self._ledger.reading() as connection:
            sealed = connection.execute(
                sa.select(c.sealed_assignment).where(c.codebook_id == codebook.codebook_id)
            ).scalar_one()
        if sealed is None:
            return record.assignment
        return LabelAssignment.from_secret_bytes(
            self._unseal(sealed, _assignment_context(codebook))
        )

    def live_labels(self, codebook: Codebook) -> list[LiveLabel]:
        """The trace labels of one of this authority's codebooks, with what opens each. Secret."""
        assignment = self.assignment_of(codebook)
        codebook.verify(self._keys.issuer)
        return live_labels(self._keys.read_master.decapsulate(codebook.header), assignment)

    def make_lock(self, codebook: Codebook, key_file: str) -> tuple[Lock, bytes]:
        """A lock for one export, under today's revocations, and its content key. Secret.

        Args:
            codebook: of this authority, and of the export.
            key_file: where a host will have the key.
        """
        record = self.model_of(codebook.codebook_id)
        with self._ledger.reading() as connection:
            revoked = revoked_users(connection)
        return Lock.make(
            codebook,
            record.metadata.model,
            self._keys.run_master,
            self._keys.signing_key,
            key_file=key_file,
            revoked=revoked.values(),
        )

    def _add_codebook(
        self,
        connection: sa.Connection,
        model_id: int,
        metadata: ModelMetadata,
        assignment: LabelAssignment,
        *,
        reordered: bool = False,
    ) -> Codebook:
        revoked = revoked_users(connection)
        codebook = Codebook.make(
            assignment,
            metadata,
            self._keys.read_master,
            self._keys.slots,
            self._keys.signing_key,
            revoked=revoked.values(),
        )
        secret = self._keys.read_master.decapsulate(codebook.header)
        sealed, order = None, {}
        if reordered:
            sealed = self._keys.seal(assignment.secret_bytes(), _assignment_context(codebook))
            order["assignment"] = hashlib.sha256(sealed).hexdigest()
        connection.execute(
            codebooks_table.insert().values(
                codebook_id=codebook.codebook_id,
                model_id=model_id,
                number=connection.execute(
                    sa.select(sa.func.coalesce(sa.func.max(codebooks_table.c.number), 0) + 1)
                ).scalar_one(),
                created_at=now_text(),
                revoked=canonical_json(sorted(revoked)).decode("ascii"),
                public=codebook.to_bytes(),
                sealed_assignment=sealed,
            )
        )
        append_event(
            connection,
            self._keys,
            CODEBOOK_MADE,
            model_id=model_id,
            codebook=codebook.codebook_id.hex(),
            codebook_digest=hashlib.sha256(codebook.to_bytes()).hexdigest(),
            revoked=len(revoked),
            live=live_commitment(live_labels(secret, assignment)),
            **order,
        )
        return codebook

    def _seal_column(
        self, connection: sa.Connection, model_id: int, column: str, secret: bytes
    ) -> None:
        sealed = self._keys.seal(secret, f"{column} {model_id}")
        connection.execute(
            models_table.update()
            .where(models_table.c.model_id == model_id)
            .values({column: sealed})
        )

    def _unseal(self, sealed: bytes, context: str) -> bytes:
        with instead_of(
            SignatureError,
            raises=lambda _: LedgerError(
                f"The authority {self._ledger.name!r} is damaged at {context!r}."
            ),
        ):
            return self._keys.unseal(sealed, context)


def _assignment_context(codebook: Codebook) -> str:
    return f"sealed_assignment of codebook {codebook.codebook_id.hex()}"


def _trace_set_context(digest: bytes) -> str:
    return f"trace_set {digest.hex()}"
