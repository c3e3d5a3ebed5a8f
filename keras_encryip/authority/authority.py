"""The owner's secrets and ledger: issue keys, revoke them, keep the models' assignments."""

import contextlib
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import msgspec
import sqlalchemy as sa
from Crypto.Random import get_random_bytes

from keras_encryip.formats.key_bundle import ANY_MODEL, format_time, make_bundle
from keras_encryip.formats.atomic_files import write_new_file
from keras_encryip.formats.key_pair import X25519PublicKey
from keras_encryip.crypto.encoding import canonical_json, decode_scalar, encode_scalar
from keras_encryip.crypto.kem import MasterKey, UserKey
from keras_encryip.crypto.aead import DEFAULT_SCRYPT_LOG2_N, KEY_BYTES, SALT_BYTES, passphrase_key, seal, unseal
from keras_encryip.crypto.signing import SigningKey
from keras_encryip.errors import ArgumentError, LedgerError, PassphraseError, SignatureError
from keras_encryip.authority.model_store import now_text, revoked_users
from keras_encryip.authority.schema import ACTIVE, PENDING, REVOKED
from keras_encryip.tracing.events import AUTHORITY_CREATED, BUNDLE_WRITTEN, KEY_ISSUED, KEY_REVOKED, KEYS_ENROLLED
from keras_encryip.authority.audit import enrolled_digest, inconsistency
from keras_encryip.authority.schema import LEDGER_VERSION, authority_table, users_table
from keras_encryip.authority.ledger import Ledger
from keras_encryip.authority.event_log import append_event, read_events
from keras_encryip.authority.tracer import Tracing
from keras_encryip.tracing.events import Event

_MAX_NAME: Final = 256
_ENROLL_BATCH: Final = 10_000


class User(msgspec.Struct, frozen=True):
    """An authorised user, as listed.

    Attributes:
        subject: the name the key was issued under.
        key_id: 16 hexadecimal digits.
        status: `"active"`, `"revoked"`, or `"pending"`: the key was drawn, but the
            process ended before the bundle was safely written; `issue` again.
        scope: names of the models the bundle is meant for; `["*"]` means any.
        issued_at, not_after, revoked_at: UTC, `YYYY-MM-DDThh:mm:ssZ`.
    """

    subject: str
    key_id: str
    status: str
    scope: list[str]
    issued_at: str
    not_after: str
    revoked_at: str | None


class Authority(Tracing):
    """The owner's secrets and ledger, in one file.

    Example:
    >>> authority = Authority.create(f"sqlite:///{folder}/acme.authority", passphrase="…")
    >>> authority.issue("alice", folder / "alice.keybundle", passphrase="correct horse").status
    'active'
    >>> authority.revoke("alice").status
    'revoked'
    """

    __slots__ = ()

    # --- life cycle ------------------------------------------------------------

    @classmethod
    def create(
        cls,
        url: str,
        passphrase: str,
        *,
        threshold: int = 4,
        name: str | None = None,
        scrypt_log2_n: int = DEFAULT_SCRYPT_LOG2_N,
    ) -> "Authority":
        """Draw new secrets and write the ledger.

        Args:
            url: where, e.g. `"sqlite:///acme.authority"`. Nothing is overwritten.
            passphrase: seals the secrets. There is no way back without it.
            threshold: t, 1 … 64: how many users can be revoked, and how many
                colluders together learn nothing beyond their own keys.
            name: shown to users in their bundles; by default the file's name.
            scrypt_log2_n: cost of trying a passphrase, 14 … 20.

        Raises:
            LedgerError: the file exists, or cannot be written.
        """
        master = MasterKey.generate(threshold)
        signing_key = SigningKey.generate()
        secret = get_random_bytes(KEY_BYTES) + signing_key.secret_bytes() + master.secret_bytes()
        salt = get_random_bytes(SALT_BYTES)
        public_key = master.public_key().to_bytes()
        issuer = signing_key.public_bytes()
        key = passphrase_key(passphrase, salt, scrypt_log2_n)
        title = name or Path(Ledger(url).url.database or "authority").stem
        _check_text(title, "name")

        def fill(connection: sa.Connection) -> None:
            connection.execute(
                authority_table.insert().values(
                    ledger_version=LEDGER_VERSION,
                    name=title,
                    created_at=now_text(),
                    public_key=public_key,
                    issuer=issuer,
                    salt=salt,
                    scrypt_log2_n=scrypt_log2_n,
                    sealed=seal(key, secret, _secrets_context(public_key, issuer)),
                )
            )
            facts = {
                "name": title,
                "threshold": threshold,
                "public_key": master.public_key().digest.hex(),
            }
            append_event(connection, signing_key, AUTHORITY_CREATED, facts)

        return cls(Ledger.create(url, fill), title, secret)

    @classmethod
    def open(cls, url: str, passphrase: str) -> "Authority":
        """Open an existing authority and check that it is whole and consistent.

        Raises:
            LedgerError: missing, busy, damaged or half-copied file, or a changed log.
            PassphraseError: wrong passphrase.
        """
        ledger = Ledger.open(url)
        with ledger.reading() as connection:
            row = connection.execute(sa.select(authority_table)).one()
        secret = None
        with contextlib.suppress(SignatureError):
            secret = unseal(
                passphrase_key(passphrase, row.salt, row.scrypt_log2_n),
                row.sealed,
                _secrets_context(row.public_key, row.issuer),
            )
        if secret is None:
            raise PassphraseError(f"The passphrase does not open the authority {ledger.name!r}.")
        authority = cls(ledger, row.name, secret)
        authority._check_consistency()
        return authority

    def close(self) -> None:
        """Release the file. The object cannot be used afterwards."""
        self._ledger.close()

    def __enter__(self) -> "Authority":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # --- facts -----------------------------------------------------------------

    def users(self) -> list[User]:
        """All users, in the order of issue."""
        with self._ledger.reading() as connection:
            rows = connection.execute(sa.select(users_table).order_by(users_table.c.user_id))
            return [_user(row) for row in rows]

    def events(self) -> list[Event]:
        """The event log, its chain and signature checked."""
        with self._ledger.reading() as connection:
            return read_events(connection, self.issuer)

    # --- users -----------------------------------------------------------------

    def issue(
        self,
        subject: str,
        path: str | PathLike[str],
        *,
        passphrase: str | None = None,
        public_key: X25519PublicKey | None = None,
        days: float = 365,
        models: list[str] | None = None,
        scrypt_log2_n: int = DEFAULT_SCRYPT_LOG2_N,
    ) -> User:
        """Issue a key and write its bundle, mode 0600.

        The key is in the ledger before the bundle exists, so that no key is ever
        out that cannot be traced. If the process ends in between, the user is
        listed as pending, and issuing again writes a bundle with the same key.

        Args:
            subject: who gets it, 1 … 256 characters, unique in this authority.
            path: where the bundle goes; never overwritten.
            passphrase: seals the bundle; give it to the user another way.
            public_key: or the user's own, to whose private key the bundle is sealed.
                Compare its `fingerprint` with the user's first, e.g. by telephone.
            days: until the bundle expires (advisory).
            models: names of the models it is meant for (advisory); all by default.
            scrypt_log2_n: cost of trying a passphrase, 14 … 20.

        Raises:
            LedgerError: the subject has a key already.
            ArgumentError: the path exists or cannot be written, a field is invalid, or not
                one of passphrase and public key was passed.
        """
        if not isinstance(days, (int, float)) or not 0 < days <= 36525:
            raise ArgumentError(f"`days` must be in 0 … 36525. Received: days={days}")
        _check_text(subject, "subject")
        if models is not None and (isinstance(models, str) or not list(models)):
            raise ArgumentError(
                "`models` must be a list of model names, or None for any. "
                f"Received: models={models!r}"
            )
        if Path(path).exists():
            raise ArgumentError(f"{str(path)!r} exists already, and is never overwritten.")
        now = datetime.now(UTC)
        scope = sorted(set(models)) if models else [ANY_MODEL]
        key = self._pending_key(subject) or self._master.issue()

        def bundle(user_key: UserKey) -> bytes:
            return make_bundle(
                user_key,
                passphrase=passphrase,
                public_key=public_key,
                subject=subject,
                issuer_name=self.name,
                authority=self.public_key.digest,
                signing_key=self._signing_key,
                not_before=now,
                not_after=now + timedelta(days=days),
                scope=scope,
                scrypt_log2_n=scrypt_log2_n,
            )

        data = bundle(key)
        fields = {
            "scope": canonical_json(scope).decode("ascii"),
            "issued_at": format_time(now),
            "not_after": format_time(now + timedelta(days=days)),
        }
        with self._ledger.writing() as connection:
            row = _find_user(connection, subject)
            if row is None:
                connection.execute(
                    users_table.insert().values(
                        subject=subject,
                        z=encode_scalar(key.z),
                        key_id=key.key_id,
                        status=PENDING,
                        **fields,
                    )
                )
                self._log(connection, KEY_ISSUED, subject=subject, key_id=key.key_id, **fields)
            elif row.status != PENDING or row.key_id != key.key_id:
                raise LedgerError(
                    f"{subject!r} has a key already ({row.key_id}, {row.status}). Users are "
                    "named once; issue under another name."
                )
        write_new_file(path, data, mode=0o600)
        with self._ledger.writing() as connection:
            connection.execute(
                users_table.update()
                .where(users_table.c.subject == subject, users_table.c.status == PENDING)
                .values(status=ACTIVE, **fields)
            )
            facts = fields | ({"made_to": public_key.digest.hex()} if public_key else {})
            self._log(connection, BUNDLE_WRITTEN, subject=subject, key_id=key.key_id, **facts)
            user = _user(_find_user(connection, subject))
        self.cache_answers(at_most=1)
        return user

    def enroll(self, subjects: Iterable[str]) -> list[User]:
        """Draw keys for many users at once; `issue` writes a user's bundle when it is wanted.

        The users are listed as pending until then. Milliseconds each: the cost of a
        bundle is its passphrase. Users come in batches of 10,000, and those that are in the
        ledger stay if a later batch fails.

        Args:
            subjects: names, as for `issue`.

        Raises:
            LedgerError: a subject has a key already, or occurs twice.

        Example:
        >>> authority = Authority.create(f"sqlite:///{folder}/many.authority", passphrase="…")
        >>> [user.status for user in authority.enroll(["ann", "ben"])]
        ['pending', 'pending']
        """
        if isinstance(subjects, str) or not isinstance(subjects, Iterable):
            raise ArgumentError(f"`subjects` must be a list of names. Received: {subjects!r}")
        names = list(subjects)
        with self._ledger.reading() as connection:
            known = set(connection.execute(sa.select(users_table.c.subject)).scalars())
        for name in names:
            _check_text(name, "subjects")
            if name in known:
                raise LedgerError(
                    f"{name!r} has a key already, or is named twice. Users are named once."
                )
            known.add(name)
        users: list[User] = []
        for start in range(0, len(names), _ENROLL_BATCH):
            users += self._enroll(names[start : start + _ENROLL_BATCH])
        self.cache_answers(at_most=len(names))
        return users

    def _enroll(self, names: list[str]) -> list[User]:
        now = now_text()
        scope = canonical_json([ANY_MODEL]).decode("ascii")
        facts = {"scope": scope, "issued_at": now, "not_after": now}
        keys = [self._master.issue() for _ in names]
        users = [
            User(name, key.key_id, PENDING, [ANY_MODEL], now, now, None)
            for name, key in zip(names, keys, strict=True)
        ]
        rows = [
            {
                "subject": user.subject,
                "z": encode_scalar(key.z),
                "key_id": user.key_id,
                "status": PENDING,
                **facts,
            }
            for user, key in zip(users, keys, strict=True)
        ]
        digest = enrolled_digest((user.subject, user.key_id) for user in users)
        with self._ledger.writing() as connection:
            connection.execute(users_table.insert(), rows)
            self._log(connection, KEYS_ENROLLED, count=len(rows), digest=digest, **facts)
        return users

    def revoke(self, subject: str) -> User:
        """Shut a user out of every codebook made from now on.

        Nobody else's key changes. What is exported already stays readable to the
        user: export again (a new codebook is made by itself).

        Raises:
            LedgerError: unknown or already revoked, or t users are revoked already.
        """
        _check_text(subject, "subject")
        with self._ledger.writing() as connection:
            row = _find_user(connection, subject)
            if row is None:
                raise LedgerError(f"There is no user {subject!r} in {self._ledger.name!r}.")
            if row.status == REVOKED:
                raise LedgerError(f"{subject!r} was revoked on {row.revoked_at} already.")
            if len(revoked_users(connection)) >= self.threshold:
                raise LedgerError(
                    f"threshold={self.threshold} users are revoked already. To shut out more, "
                    "create an authority with a larger threshold and protect the model under it."
                )
            now = now_text()
            connection.execute(
                users_table.update()
                .where(users_table.c.subject == subject)
                .values(status=REVOKED, revoked_at=now)
            )
            self._log(connection, KEY_REVOKED, subject=subject, key_id=row.key_id, revoked_at=now)
            return _user(_find_user(connection, subject))

    def _pending_key(self, subject: str) -> UserKey | None:
        with self._ledger.reading() as connection:
            row = _find_user(connection, subject)
        if row is None or row.status != PENDING:
            return None
        return self._master.user_key(decode_scalar(row.z, what="z"))

    def _check_consistency(self) -> None:
        """The log is intact, and agrees with the tables."""
        with self._ledger.reading() as connection:
            table = inconsistency(connection, read_events(connection, self.issuer))
        if table:
            raise LedgerError(
                f"The {table} of {self._ledger.name!r} do not agree with its event log: "
                "the file was changed by other means, or is damaged."
            )


def _check_text(text: str, argument: str) -> None:
    """Refuse what cannot stand in a bundle or in the ledger."""
    storable = isinstance(text, str) and 0 < len(text) <= _MAX_NAME
    if storable:
        try:
            text.encode()
        except UnicodeEncodeError:  # a lone surrogate, from a command line that is not UTF-8
            storable = False
    if not storable:
        raise ArgumentError(
            f"`{argument}` must be a string of 1 … {_MAX_NAME} characters. "
            f"Received: {argument}={text!r}"
        )


def _secrets_context(public_key: bytes, issuer: bytes) -> bytes:
    return b"encryip authority v1\0" + public_key + issuer


def _find_user(connection: sa.Connection, subject: str) -> Any:
    return connection.execute(
        sa.select(users_table).where(users_table.c.subject == subject)
    ).first()


def _user(row: Any) -> User:
    return User(
        subject=row.subject,
        key_id=row.key_id,
        status=row.status,
        scope=msgspec.json.decode(row.scope),
        issued_at=row.issued_at,
        not_after=row.not_after,
        revoked_at=row.revoked_at,
    )
