"""What the ledger keeps of users: who they are, and the public half of their keys."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Self

import msgspec
import numpy as np
import sqlalchemy as sa
from Crypto.Random import get_random_bytes

from keras_encryip.authority.audit import NO_ROLES, enrolled_digest
from keras_encryip.authority.event_log import append_event
from keras_encryip.authority.keys import AuthorityKeys
from keras_encryip.authority.ledger import Ledger, raw_rows
from keras_encryip.authority.schema import ACTIVE, PENDING, REVOKED, revoked_users, users_table
from keras_encryip.crypto.encoding import canonical_json, decode_scalar, encode_scalar, format_time
from keras_encryip.crypto.kem import encoded_key_id, key_id
from keras_encryip.crypto.polynomial import random_scalar
from keras_encryip.crypto.slots import commitment
from keras_encryip.errors import ArgumentError, LedgerError
from keras_encryip.formats.bundle_keys import ROLES
from keras_encryip.formats.key_bundle import ANY_MODEL
from keras_encryip.formats.key_pair import X25519PublicKey
from keras_encryip.formats.text import check_name
from keras_encryip.tracing.events import (
    BUNDLE_WRITTEN,
    KEY_ISSUED,
    KEY_REVOKED,
    KEYS_ENROLLED,
    now_text,
)

_ENROLL_BATCH: Final = 10_000
_PART: Final = 1 << 16


class User(msgspec.Struct, frozen=True):
    """An authorised user, as listed.

    Attributes:
        subject: the name the key was issued under.
        key_id: 16 hexadecimal digits.
        status: `"active"`, `"revoked"`, or `"pending"`: the key was drawn, but the
            process ended before the bundle was safely written; `issue` again.
        scope: names of the models the bundle is meant for; `["*"]` means any.
        roles: what the bundle is for, of `"read"` and `"run"`; empty before `issue`.
        issued_at, not_after, revoked_at: UTC, `YYYY-MM-DDThh:mm:ssZ`.
    """

    subject: str
    key_id: str
    status: str
    scope: list[str]
    roles: list[str]
    issued_at: str
    not_after: str
    revoked_at: str | None


class Terms(msgspec.Struct, frozen=True):
    """What a bundle is for; and, advisory, from when to when, in UTC, and for which models."""

    issued_at: datetime
    not_after: datetime
    scope: list[str]
    roles: list[str]

    @classmethod
    def checked(cls, days: float, models: list[str] | None, roles: Sequence[str]) -> Self:
        """From now on, by the arguments of `Authority.issue`.

        Raises:
            ArgumentError: one is invalid.
        """
        if not isinstance(days, (int, float)) or not 0 < days <= 36525:
            raise ArgumentError(f"`days` must be in 0 … 36525. Received: days={days}")
        if models is not None and (isinstance(models, str) or not list(models)):
            raise ArgumentError(
                "`models` must be a list of model names, or None for any. "
                f"Received: models={models!r}"
            )
        if isinstance(roles, str) or not set(roles) <= set(ROLES) or not roles:
            raise ArgumentError(
                f"`roles` must hold 'read', 'run' or both. Received: roles={roles!r}"
            )
        now = datetime.now(UTC)
        names = {check_name(model, "models") for model in models or [ANY_MODEL]}
        return cls(now, now + timedelta(days=days), sorted(names), sorted(set(roles)))

    @property
    def columns(self) -> dict[str, str]:
        """As the ledger writes them."""
        return {
            "scope": canonical_json(self.scope).decode("ascii"),
            "roles": canonical_json(self.roles).decode("ascii"),
            "issued_at": format_time(self.issued_at),
            "not_after": format_time(self.not_after),
        }


class UserStore:
    """The users in an authority's ledger.

    Args:
        ledger: where they are kept.
        keys: what their keys are points of.
    """

    def __init__(self, ledger: Ledger, keys: AuthorityKeys) -> None:
        self._ledger = ledger
        self._keys = keys

    # --- reading -------------------------------------------------------------------

    def all(self) -> list[User]:
        """All users, in the order of issue."""
        return self._select(sa.select(users_table))

    def with_keys(self, key_ids: Iterable[str]) -> list[User]:
        """The users who have these keys, in the order of issue."""
        wanted = users_table.c.key_id.in_(list(key_ids))
        return self._select(sa.select(users_table).where(wanted))

    def count(self) -> int:
        """How many users there are, whatever their status."""
        with self._ledger.reading() as connection:
            count = sa.select(sa.func.count()).select_from(users_table)
            return int(connection.execute(count).scalar_one())

    def zs(self, key_ids: Sequence[str] | None = None) -> dict[str, int]:
        """key_id → z: of all users, or of those who have some of these keys."""
        u = users_table.c
        query = sa.select(u.key_id, u.z).order_by(u.user_id)
        if key_ids is not None:
            query = query.where(u.key_id.in_(key_ids))
        with self._ledger.reading() as connection:
            rows = connection.execute(query).all()
        return {row.key_id: decode_scalar(row.z, what="z") for row in rows}

    def recipient(self, subject: str) -> str:
        """The key id of an active user.

        Raises:
            LedgerError: there is no such user, or the key was revoked or never written.
        """
        subject = check_name(subject, "recipient")
        with self._ledger.reading() as connection:
            user = _find(connection, subject)
        if user is None or user.status != ACTIVE:
            state = "is not a user" if user is None else f"is {user.status}"
            raise LedgerError(
                f"`recipient` must have an active key in {self._ledger.name!r}: {subject!r} "
                f"{state}. Issue a key first."
            )
        return user.key_id

    def pending_z(self, subject: str) -> int | None:
        """The z of a user whose bundle was never asked for, or never safely written."""
        u = users_table.c
        query = sa.select(u.z).where(u.subject == subject, u.status == PENDING)
        with self._ledger.reading() as connection:
            z = connection.execute(query).scalar()
        return None if z is None else decode_scalar(z, what="z")

    def key_ids(self) -> np.ndarray:
        """The key ids of all users, whatever their status, in the order of issue: `[users]`, S16.

        All at once: the file is locked only as long as they are read.
        """
        query = sa.select(users_table.c.key_id).order_by(users_table.c.user_id)
        with self._ledger.reading() as connection:
            parts = [
                np.array([key_id for (key_id,) in rows], "S16")
                for rows in raw_rows(connection, query, _PART)
            ]
        return np.concatenate([np.empty(0, "S16"), *parts])

    def _select(self, query: sa.Select[Any]) -> list[User]:
        with self._ledger.reading() as connection:
            return [_user(row) for row in connection.execute(query.order_by(users_table.c.user_id))]

    # --- changing ------------------------------------------------------------------

    def add_pending(self, subject: str, z: int, terms: Terms) -> None:
        """Keep a key, and commit to its codeword, before its bundle exists.

        Raises:
            LedgerError: the subject has a key already.
        """
        key = key_id(z)
        codeword = commitment(self._keys.slots.codeword_leaves(key))
        facts = {"subject": subject, "key_id": key, **terms.columns}
        row = {**facts, "z": encode_scalar(z), "status": PENDING}
        u = users_table.c
        with self._ledger.writing() as connection:
            user = _find(connection, subject)
            if user is None:
                connection.execute(users_table.insert().values(row))
            elif user.status == PENDING and user.key_id == key:
                connection.execute(users_table.update().where(u.subject == subject).values(row))
            else:
                raise LedgerError(
                    f"{subject!r} has a key already ({user.key_id}, {user.status}). Users are "
                    "named once; issue under another name."
                )
            append_event(connection, self._keys, KEY_ISSUED, codeword=codeword, **facts)

    def activate(self, subject: str, public_key: X25519PublicKey | None) -> User:
        """A pending user's bundle is written, perhaps to a public key of their own."""
        u = users_table.c
        pending = (u.subject == subject) & (u.status == PENDING)
        with self._ledger.writing() as connection:
            facts = {"subject": subject, "key_id": _get(connection, subject).key_id}
            if public_key is not None:
                facts["made_to"] = public_key.digest.hex()
            connection.execute(users_table.update().where(pending).values(status=ACTIVE))
            append_event(connection, self._keys, BUNDLE_WRITTEN, **facts)
            return _get(connection, subject)

    def enroll(self, subjects: Sequence[str]) -> list[User]:
        """Draw keys for many users, in batches with one event each.

        Raises:
            LedgerError: a subject has a key already, or occurs twice.
        """
        with self._ledger.reading() as connection:
            known = set(connection.execute(sa.select(users_table.c.subject)).scalars())
        for subject in subjects:
            if subject in known:
                raise LedgerError(
                    f"{subject!r} has a key already, or is named twice. Users are named once."
                )
            known.add(subject)
        users: list[User] = []
        for start in range(0, len(subjects), _ENROLL_BATCH):
            users += self._enroll_batch(subjects[start : start + _ENROLL_BATCH])
        return users

    def _enroll_batch(self, subjects: Sequence[str]) -> list[User]:
        now = now_text()
        scope = canonical_json([ANY_MODEL]).decode("ascii")
        facts = {"scope": scope, "issued_at": now, "not_after": now}
        zs = [encode_scalar(random_scalar(get_random_bytes)) for _ in subjects]
        same = {"status": PENDING, "roles": NO_ROLES, **facts}
        ids = [encoded_key_id(z) for z in zs]
        rows = [
            {"subject": subject, "z": z, "key_id": name, **same}
            for subject, z, name in zip(subjects, zs, ids, strict=True)
        ]
        users = [
            User(subject, name, PENDING, [ANY_MODEL], [], now, now, None)
            for subject, name in zip(subjects, ids, strict=True)
        ]
        digest = enrolled_digest([(user.subject, user.key_id) for user in users])
        counted = {"count": len(rows), "digest": digest}
        with self._ledger.writing() as connection:
            connection.execute(users_table.insert(), rows)
            append_event(connection, self._keys, KEYS_ENROLLED, **counted, **facts)
        return users

    def revoke(self, subject: str) -> User:
        """Shut a user out of every codebook made from now on.

        Raises:
            LedgerError: unknown or already revoked, or t users are revoked already.
        """
        threshold = self._keys.threshold
        with self._ledger.writing() as connection:
            user = _find(connection, subject)
            if user is None:
                raise LedgerError(f"There is no user {subject!r} in {self._ledger.name!r}.")
            if user.status == REVOKED:
                raise LedgerError(f"{subject!r} was revoked on {user.revoked_at} already.")
            if len(revoked_users(connection)) >= threshold:
                raise LedgerError(
                    f"threshold={threshold} users are revoked already. To shut out more, "
                    "create an authority with a larger threshold and protect the model under it."
                )
            facts = {"subject": subject, "key_id": user.key_id, "revoked_at": now_text()}
            connection.execute(
                users_table.update()
                .where(users_table.c.subject == subject)
                .values(status=REVOKED, revoked_at=facts["revoked_at"])
            )
            append_event(connection, self._keys, KEY_REVOKED, **facts)
            return _get(connection, subject)


def _find(connection: sa.Connection, subject: str) -> User | None:
    query = sa.select(users_table).where(users_table.c.subject == subject)
    row = connection.execute(query).first()
    return None if row is None else _user(row)


def _get(connection: sa.Connection, subject: str) -> User:
    user = _find(connection, subject)
    if user is None:
        raise LedgerError(f"There is no user {subject!r}.")
    return user


def _user(row: Any) -> User:
    return User(
        subject=row.subject,
        key_id=row.key_id,
        status=row.status,
        scope=msgspec.json.decode(row.scope),
        roles=msgspec.json.decode(row.roles),
        issued_at=row.issued_at,
        not_after=row.not_after,
        revoked_at=row.revoked_at,
    )
