"""What the ledger keeps of protected models: assignments, training states, codebooks."""

import contextlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
import numpy as np
import sqlalchemy as sa
from Crypto.Hash import SHA256

from keras_encryip.formats.key_bundle import format_time
from keras_encryip.crypto.encoding import canonical_json, decode_scalar
from keras_encryip.crypto.kem import MasterKey, PublicKey
from keras_encryip.crypto.tracing_header import TracingHeader
from keras_encryip.crypto.secret import Secret
from keras_encryip.crypto.aead import KEY_BYTES, seal, unseal
from keras_encryip.crypto.signing import SEED_BYTES, SigningKey
from keras_encryip.errors import LedgerError, SignatureError
from keras_encryip.labels.assignment import LabelAssignment
from keras_encryip.labels.codebook import Codebook, ModelMetadata
from keras_encryip.authority.predicted_answers import CHUNK, PredictedAnswers, DamagedCacheError
from keras_encryip.tracing.events import CODEBOOK_MADE, MODEL_PROTECTED
from keras_encryip.authority.schema import REVOKED
from keras_encryip.authority.ledger import Ledger
from keras_encryip.authority.event_log import append_event
from keras_encryip.authority.schema import codebooks_table, exports_table, models_table, trace_sets_table, users_table
from keras_encryip.labels.trace_set import TraceSet


@dataclass(frozen=True, repr=False)
class ModelRecord:
    """What the ledger keeps of one protected model. All but its metadata is secret."""

    model_id: int
    metadata: ModelMetadata
    assignment: LabelAssignment
    training: bytes | None
    traces: TraceSet | None


class Catalog(Secret):
    """The models' half of an `Authority`; `protect`, `unlock` and export use it."""

    __slots__ = ("_data_key", "_ledger", "_master", "_signing_key", "name", "public_key")

    def __init__(self, ledger: Ledger, name: str, secret: bytes) -> None:
        """Use `Authority.create` or `Authority.open`."""
        self._ledger = ledger
        self.name = name
        self._data_key = secret[:KEY_BYTES]
        self._signing_key = SigningKey(secret[KEY_BYTES : KEY_BYTES + SEED_BYTES])
        self._master = MasterKey.from_secret_bytes(secret[KEY_BYTES + SEED_BYTES :])
        self.public_key: PublicKey = self._master.public_key()

    def _describe(self) -> str:
        return f"{self._ledger.name} public={self.public_key.digest.hex()[:16]}"

    @property
    def threshold(self) -> int:
        """t: how many users can be revoked."""
        return self._master.threshold

    @property
    def issuer(self) -> bytes:
        """The Ed25519 public key (32 bytes) that signs bundles, codebooks and manifests."""
        return self._signing_key.public_bytes()

    def models(self) -> list[str]:
        """Names of the protected models, in the order of protection; a name can recur."""
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
            self._log(connection, MODEL_PROTECTED, model=metadata.model, model_id=model_id)
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
        m = models_table.c
        with self._ledger.reading() as connection:
            row = connection.execute(
                sa.select(models_table).where(m.name == name).order_by(m.model_id.desc()).limit(1)
            ).first()
        if row is None:
            known = ", ".join(map(repr, dict.fromkeys(self.models()))) or "none"
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
        own = [] if record.traces is None else [record.traces]
        return own + [self._trace_set(d) for d in sorted(digests - {t.digest for t in own})]

    def _trace_set(self, digest: bytes) -> TraceSet:
        t = trace_sets_table.c
        with self._ledger.reading() as connection:
            row = connection.execute(sa.select(t.sealed).where(t.digest == digest)).one()
        context = _trace_set_context(digest).decode()
        return TraceSet.from_secret_bytes(self._unseal(row.sealed, context))

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
            None if row.trace_set is None else self._trace_set(row.trace_set),
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
                sealed = seal(self._data_key, traces.secret_bytes(), _trace_set_context(digest))
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
                codebook.verify(self.issuer)
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
        record, own = self.model_of(codebook.codebook_id), self.assignment_of(codebook)
        assignment = own.redraw()
        with self._ledger.writing() as connection:
            new = self._add_codebook(
                connection, record.model_id, record.metadata, assignment, reordered=True
            )
        return new, own.moved_to(assignment)

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
        context = _assignment_context(codebook).decode()
        return LabelAssignment.from_secret_bytes(self._unseal(sealed, context))

    def response_key(self, codebook: Codebook) -> bytes:
        """What this codebook's key holders can decrypt: for an encrypted export. Secret."""
        return codebook.response_key(self._master.issue())

    def tracing_headers(self, codebook: Codebook) -> tuple[TracingHeader, ...]:
        """The tracing headers of one of this authority's codebooks, with their exponents."""
        assignment = self.assignment_of(codebook)
        codebook.verify(self.issuer)
        with self._ledger.reading() as connection:
            sealed = connection.execute(
                sa.select(codebooks_table.c.sealed_exponents).where(
                    codebooks_table.c.codebook_id == codebook.codebook_id
                )
            ).scalar_one()
        exponents = self._unseal(sealed, f"sealed_exponents {codebook.codebook_id.hex()}")
        size = 32 * (self.threshold + 1)
        headers = [
            header
            for header, tracing in zip(codebook.headers, assignment.tracing_blocks, strict=True)
            if tracing
        ]
        return tuple(
            TracingHeader.from_secret_bytes(header, exponents[i * size : (i + 1) * size])
            for i, header in enumerate(headers)
        )

    def answer_cache(self, codebook: Codebook) -> PredictedAnswers:
        """The users' predicted trace answers under one of this authority's codebooks."""
        assignment = self.assignment_of(codebook)
        tracing = self.tracing_headers(codebook)
        return PredictedAnswers(self._data_key, self._master, codebook, assignment, tracing)

    def cache_answers(self, *, at_most: int) -> None:
        """Keep new users' answers for every model's newest codebook, while that is quick.

        Where more users than these and a chunk are missing, tracing will catch up.
        """
        c = codebooks_table.c
        newest = sa.select(sa.func.max(c.number)).group_by(c.model_id)
        with self._ledger.reading() as connection:
            rows = connection.execute(sa.select(c.public).where(c.number.in_(newest))).all()
        for row in rows:
            cache = self.answer_cache(Codebook.from_bytes(row.public))
            with contextlib.suppress(DamagedCacheError):  # tracing computes it again
                with self._ledger.reading() as connection:
                    missing = cache.missing(connection)
                while 0 < missing <= at_most + CHUNK:
                    with self._ledger.writing() as connection:
                        if not cache.extend(connection):
                            break

    def sign(self, domain: str, message: bytes) -> bytes:
        """An Ed25519 signature for one domain."""
        return self._signing_key.sign(domain, message)

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
        codebook, tracing = Codebook.make(
            assignment, metadata, self._master, self._signing_key, revoked=revoked.values()
        )
        exponents = b"".join(header.secret_bytes() for header in tracing)
        name = f"sealed_exponents {codebook.codebook_id.hex()}"
        sealed, order = None, {}
        if reordered:
            secret = assignment.secret_bytes()
            sealed = seal(self._data_key, secret, _assignment_context(codebook))
            order["assignment"] = SHA256.new(sealed).hexdigest()
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
                sealed_exponents=seal(self._data_key, exponents, name.encode()),
                sealed_assignment=sealed,
            )
        )
        self._log(
            connection,
            CODEBOOK_MADE,
            model_id=model_id,
            codebook=codebook.codebook_id.hex(),
            revoked=len(revoked),
            **order,
        )
        return codebook

    def _seal_column(
        self, connection: sa.Connection, model_id: int, column: str, secret: bytes
    ) -> None:
        sealed = seal(self._data_key, secret, f"{column} {model_id}".encode())
        connection.execute(
            models_table.update()
            .where(models_table.c.model_id == model_id)
            .values({column: sealed})
        )

    def _unseal(self, sealed: bytes, context: str) -> bytes:
        secret = None
        with contextlib.suppress(SignatureError):
            secret = unseal(self._data_key, sealed, context.encode())
        if secret is None:
            raise LedgerError(f"The authority {self._ledger.name!r} is damaged at {context!r}.")
        return secret

    def _log(self, connection: sa.Connection, kind: str, **details: Any) -> None:
        append_event(connection, self._signing_key, kind, details)


def revoked_users(connection: sa.Connection) -> dict[str, int]:
    """key_id → z of every revoked user."""
    rows = connection.execute(
        sa.select(users_table.c.key_id, users_table.c.z).where(users_table.c.status == REVOKED)
    )
    return {row.key_id: decode_scalar(row.z, what="z") for row in rows}


def _assignment_context(codebook: Codebook) -> bytes:
    return f"sealed_assignment of codebook {codebook.codebook_id.hex()}".encode()


def _trace_set_context(digest: bytes) -> bytes:
    return f"trace_set {digest.hex()}".encode()


def now_text() -> str:
    """The moment, as the ledger writes it."""
    return format_time(datetime.now(UTC))
