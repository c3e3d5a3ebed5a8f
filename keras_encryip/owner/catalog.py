"""What the ledger keeps of protected models: assignments, training states, codebooks."""

import contextlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
import sqlalchemy as sa

from keras_encryip.client.bundle import format_time
from keras_encryip.crypto.encoding import canonical_json, decode_scalar
from keras_encryip.crypto.kem import MasterKey, PublicKey, TracingHeader
from keras_encryip.crypto.opaque import Opaque
from keras_encryip.crypto.sealing import KEY_BYTES, seal, unseal
from keras_encryip.crypto.signing import SEED_BYTES, SigningKey
from keras_encryip.errors import LedgerError, SignatureError
from keras_encryip.labels.assignment import LabelAssignment
from keras_encryip.labels.codebook import Codebook, ModelMetadata
from keras_encryip.owner.consistency import CODEBOOK_MADE, MODEL_PROTECTED, REVOKED
from keras_encryip.owner.ledger import (
    Ledger,
    append_event,
    codebooks_table,
    models_table,
    users_table,
)


@dataclass(frozen=True, repr=False)
class ModelRecord:
    """What the ledger keeps of one protected model. `assignment` and `training` are secret."""

    model_id: int
    metadata: ModelMetadata
    assignment: LabelAssignment
    training: bytes | None


class Catalog(Opaque):
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
        )

    def save_training(self, model_id: int, state: bytes) -> None:
        """Keep what training learned about the data and must not be in any model file."""
        with self._ledger.writing() as connection:
            self._seal_column(connection, model_id, "sealed_training", state)

    def current_codebook(self, codebook_id: bytes, *, fresh: bool = False) -> Codebook:
        """The newest codebook of a model; a new one if users were revoked since, or if `fresh`."""
        record = self.model_of(codebook_id)
        with self._ledger.writing() as connection:
            row = connection.execute(
                sa.select(codebooks_table)
                .where(codebooks_table.c.model_id == record.model_id)
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

    def tracing_headers(self, codebook: Codebook) -> tuple[TracingHeader, ...]:
        """The tracing headers of one of this authority's codebooks, with their exponents."""
        record = self.model_of(codebook.codebook_id)
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
            for header, tracing in zip(
                codebook.headers, record.assignment.tracing_blocks, strict=True
            )
            if tracing
        ]
        return tuple(
            TracingHeader.from_secret_bytes(header, exponents[i * size : (i + 1) * size])
            for i, header in enumerate(headers)
        )

    def sign(self, domain: str, message: bytes) -> bytes:
        """An Ed25519 signature for one domain."""
        return self._signing_key.sign(domain, message)

    def record(self, kind: str, **details: str | int) -> None:
        """Append an event. Public facts only."""
        with self._ledger.writing() as connection:
            self._log(connection, kind, **details)

    def _add_codebook(
        self,
        connection: sa.Connection,
        model_id: int,
        metadata: ModelMetadata,
        assignment: LabelAssignment,
    ) -> Codebook:
        revoked = revoked_users(connection)
        codebook, tracing = Codebook.make(
            assignment, metadata, self._master, self._signing_key, revoked=revoked.values()
        )
        exponents = b"".join(header.secret_bytes() for header in tracing)
        name = f"sealed_exponents {codebook.codebook_id.hex()}"
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
            )
        )
        self._log(
            connection,
            CODEBOOK_MADE,
            model_id=model_id,
            codebook=codebook.codebook_id.hex(),
            revoked=len(revoked),
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


def now_text() -> str:
    """The moment, as the ledger writes it."""
    return format_time(datetime.now(UTC))
