"""The owner's secrets and ledger: issue keys, revoke them, keep the models' assignments."""

from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Self

import sqlalchemy as sa
from Crypto.Random import get_random_bytes

from keras_encryip.authority.audit import check_ledger
from keras_encryip.authority.event_log import append_event, log_head, read_events
from keras_encryip.authority.export_store import ExportStore
from keras_encryip.authority.keys import AuthorityKeys
from keras_encryip.authority.ledger import Ledger
from keras_encryip.authority.model_store import ModelStore
from keras_encryip.authority.schema import LEDGER_VERSION, authority_table
from keras_encryip.authority.user_store import Terms, User, UserStore
from keras_encryip.crypto.aead import DEFAULT_SCRYPT_LOG2_N, SALT_BYTES
from keras_encryip.crypto.kem import PublicKey
from keras_encryip.crypto.polynomial import random_scalar
from keras_encryip.crypto.secret import Secret
from keras_encryip.crypto.slots import DEFAULT_SLOTS, commitment
from keras_encryip.errors import ArgumentError, PassphraseError, SignatureError, instead_of
from keras_encryip.formats.atomic_files import make_new_file, write_synced
from keras_encryip.formats.bundle_keys import ROLES, Role
from keras_encryip.formats.key_bundle import make_bundle
from keras_encryip.formats.key_pair import X25519PublicKey
from keras_encryip.formats.text import check_name
from keras_encryip.tracing.events import AUTHORITY_CREATED, Event, now_text


class Authority(Secret):
    """The owner of protected models: issues keys, revokes them, keeps the models' secrets.

    `Tracer` finds leakers with it; `protect` and `export_saved_model` work on its behalf.

    Attributes:
        name: shown to users in their bundles.
        keys: `AuthorityKeys`, the unsealed secrets. Secret.
        ledger: `Ledger`, the file that these stores share.
        user_store: `UserStore`, who may read them.
        model_store: `ModelStore`, the protected models.
        export_store: `ExportStore`, what was exported.

    Example:
    >>> authority = Authority.create(folder / "acme.authority", passphrase="…")
    >>> authority.issue("alice", folder / "alice.keybundle", passphrase="correct horse").status
    'active'
    >>> authority.revoke("alice").status
    'revoked'
    """

    __slots__ = ("export_store", "keys", "ledger", "model_store", "name", "user_store")

    def __init__(self, ledger: Ledger, name: str, keys: AuthorityKeys) -> None:
        """Use `Authority.create` or `Authority.open`."""
        self.name = name
        self.keys = keys
        self.ledger = ledger
        self.user_store = UserStore(ledger, keys)
        self.model_store = ModelStore(ledger, keys)
        self.export_store = ExportStore(ledger, keys, self.model_store)

    def _describe(self) -> str:
        return f"{self.ledger.name} public={self.public_key.digest.hex()[:16]}"

    # --- life cycle ------------------------------------------------------------

    @classmethod
    def create(
        cls,
        url: str | PathLike[str],
        passphrase: str,
        *,
        threshold: int = 4,
        slots: int = DEFAULT_SLOTS,
        name: str | None = None,
        scrypt_log2_n: int = DEFAULT_SCRYPT_LOG2_N,
    ) -> Self:
        """Draw new secrets and write the ledger. `close` it, or use it in a `with` statement.

        Args:
            url: where: a file's path, or a sqlite URL such as
                `"sqlite:///acme.authority"`. Nothing is overwritten.
            passphrase: seals the secrets. There is no way back without it.
            threshold: t, 1 … 64: how many users can be revoked, and how many
                colluders together learn nothing beyond their own keys.
            slots: M, a multiple of 8 in 256 … 4,096: the bits of a user's codeword, 16 bytes of
                their bundle each. A model has at most half as many trace labels.
            name: shown to users in their bundles; by default the file's name.
            scrypt_log2_n: cost of trying a passphrase, 14 … 20.

        Raises:
            LedgerError: the file exists, or cannot be written.
            ArgumentError: a number is out of range, or the name or passphrase cannot be used.

        Example:
        >>> with Authority.create(folder / "acme.authority", "…", threshold=8) as authority:
        ...     authority.name, authority.threshold
        ('acme', 8)
        """
        keys = AuthorityKeys.generate(threshold, slots)
        salt = get_random_bytes(SALT_BYTES)
        sealed = keys.to_sealed(passphrase, salt, scrypt_log2_n)
        if name is None:
            name = Path(Ledger(url).url.database or "authority").stem
        title = check_name(name, "name")

        def fill(connection: sa.Connection) -> None:
            connection.execute(
                authority_table.insert().values(
                    ledger_version=LEDGER_VERSION,
                    name=title,
                    created_at=now_text(),
                    public_key=keys.public_key.to_bytes(),
                    issuer=keys.issuer,
                    salt=salt,
                    scrypt_log2_n=scrypt_log2_n,
                    sealed=sealed,
                )
            )
            append_event(
                connection,
                keys,
                AUTHORITY_CREATED,
                name=title,
                threshold=threshold,
                public_key=keys.public_key.digest.hex(),
                run_public_key=keys.run_master.public_key().digest.hex(),
                slots=slots,
                slot_commitment=commitment(keys.slots.slot_leaves()),
            )

        return cls(Ledger.create(url, fill), title, keys)

    @classmethod
    def open(
        cls, url: str | PathLike[str], passphrase: str, *, expect_log: str | None = None
    ) -> Self:
        """Open an existing authority and check that it is whole and consistent.

        Args:
            url: where, as for `create`.
            passphrase: what its secrets were sealed with.
            expect_log: an earlier `log_head`, `"N:DIGEST"`, that you kept elsewhere. A file cannot
                show by itself that it is an old copy, or that its newest events were cut off.

        Raises:
            LedgerError: missing, busy, damaged or half-copied file, or a changed log; or the log
                is shorter than `expect_log`, or has another event there.
            PassphraseError: wrong passphrase.
            ArgumentError: `expect_log` is no log head.

        Example:
        >>> with Authority.open(folder / "own.authority", "correct horse") as authority:
        ...     authority.models()
        ['digits']
        """
        ledger = Ledger.open(url)
        with ledger.closed_on_failure():
            return cls._open(ledger, passphrase, expect_log)

    @classmethod
    def _open(cls, ledger: Ledger, passphrase: str, expect_log: str | None) -> Self:
        with ledger.reading() as connection:
            row = connection.execute(sa.select(authority_table)).one()
        with instead_of(
            SignatureError,
            raises=lambda _: PassphraseError(
                f"The passphrase does not open the authority {ledger.name!r}."
            ),
        ):
            keys = AuthorityKeys.from_sealed(
                row.sealed,
                passphrase,
                row.salt,
                row.scrypt_log2_n,
                public_key=row.public_key,
                issuer=row.issuer,
            )
        check_ledger(ledger, keys.issuer, expect_log)
        return cls(ledger, row.name, keys)

    def close(self) -> None:
        """Release the file. Using the object again opens the file again.

        Example:
        >>> authority = Authority.open(folder / "own.authority", "correct horse")
        >>> len(authority.users())
        3
        >>> authority.close()
        """
        self.ledger.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- facts -----------------------------------------------------------------

    @property
    def threshold(self) -> int:
        """t, 1 … 64: how many users can be revoked.

        Example:
        >>> authority.threshold
        4
        """
        return self.keys.threshold

    @property
    def public_key(self) -> PublicKey:
        """What readers' keys are points of; its digest, 32 bytes, names the authority in files.

        Example:
        >>> authority.public_key.digest == bundle.authority
        True
        """
        return self.keys.public_key

    @property
    def issuer(self) -> bytes:
        """The Ed25519 public key (32 bytes) that signs bundles, codebooks and manifests.

        Example:
        >>> len(authority.issuer), authority.issuer == bundle.issuer
        (32, True)
        """
        return self.keys.issuer

    def models(self) -> list[str]:
        """Names of the protected models, in the order of protection; a name can recur.

        Example:
        >>> authority.models()
        ['digits']
        """
        return self.model_store.names()

    def users(self) -> list[User]:
        """All users, in the order of issue.

        Example:
        >>> [(user.subject, user.status) for user in authority.users()]
        [('alice', 'active'), ('bob', 'active'), ('carol', 'active')]
        """
        return self.user_store.all()

    def events(self) -> list[Event]:
        """The event log, oldest first, its chain and signature checked.

        Raises:
            LedgerError: the log was changed.

        Example:
        >>> [(event.number, event.kind) for event in authority.events()][:2]
        [(1, 'authority created'), (2, 'model protected')]
        """
        with self.ledger.reading() as connection:
            return list(read_events(connection, self.issuer))

    @property
    def log_head(self) -> str:
        """`"N:DIGEST"` of the newest event: keep it elsewhere, for `open(expect_log=...)`.

        Example:
        >>> kept = authority.log_head
        >>> int(kept.split(":")[0]) == len(authority.events())
        True
        """
        with self.ledger.reading() as connection:
            return log_head(connection)

    # --- users -----------------------------------------------------------------

    def issue(
        self,
        subject: str,
        path: str | PathLike[str],
        *,
        roles: Sequence[Role] = ROLES,
        passphrase: str | None = None,
        public_key: X25519PublicKey | None = None,
        days: float = 365,
        models: list[str] | None = None,
        scrypt_log2_n: int = DEFAULT_SCRYPT_LOG2_N,
    ) -> User:
        """Issue a key and write its bundle, mode 0600.

        The key is in the ledger before the bundle exists, so that no key is ever
        out that cannot be traced. If the process ends or writing fails in between, the user is
        listed as pending, and issuing again writes a bundle with the same key.

        Args:
            subject: who gets it, 1 … 256 visible characters, unique in this authority. Kept, and
                looked up, in the Unicode normal form NFC.
            path: where the bundle goes; never overwritten.
            roles: what it is for: `"read"` decodes answers, `"run"` runs locked exports.
            passphrase: seals the bundle; give it to the user another way.
            public_key: or the user's own, to whose private key the bundle is sealed.
                Compare its `fingerprint` with the user's first, e.g. by telephone.
            days: until the bundle expires, above 0, at most 36,525 (advisory).
            models: names of the models it is meant for (advisory); all by default.
            scrypt_log2_n: cost of trying a passphrase, 14 … 20.

        Returns:
            The user, now active.

        Raises:
            LedgerError: the subject has a key already.
            ArgumentError: the path exists or cannot be written, a field is invalid, or not
                one of passphrase and public key was passed.

        Example:
        >>> bundle = folder / "dave.keybundle"
        >>> user = authority.issue("dave", bundle, passphrase="…", days=30, models=["digits"])
        >>> user.status, user.scope, user.roles
        ('active', ['digits'], ['read', 'run'])
        """
        subject = check_name(subject, "subject")
        terms = Terms.checked(days, models, roles)

        def fill(draft: Path) -> None:  # called once there is a draft beside the path
            z = self.user_store.pending_z(subject) or random_scalar(get_random_bytes)
            data = make_bundle(
                self.keys.user_keys(z, terms.roles),
                passphrase=passphrase,
                public_key=public_key,
                subject=subject,
                issuer_name=self.name,
                authority=self.public_key.digest,
                signing_key=self.keys.signing_key,
                not_before=terms.issued_at,
                not_after=terms.not_after,
                scope=terms.scope,
                scrypt_log2_n=scrypt_log2_n,
            )
            self.user_store.add_pending(subject, z, terms)
            write_synced(draft, data)

        make_new_file(path, fill, mode=0o600)
        return self.user_store.activate(subject, public_key)

    def enroll(self, subjects: Iterable[str]) -> list[User]:
        """Draw keys for many users at once; `issue` writes a user's bundle when it is wanted.

        The users are listed as pending until then. Milliseconds each: the cost of a
        bundle is its passphrase. Users come in batches of 10,000, and those that are in the
        ledger stay if a later batch fails.

        Args:
            subjects: names, as for `issue`.

        Returns:
            The `User`s, in the order of `subjects`.

        Raises:
            LedgerError: a subject has a key already, or occurs twice.
            ArgumentError: `subjects` is no list of names.

        Example:
        >>> [user.status for user in authority.enroll(["ann", "ben"])]
        ['pending', 'pending']
        """
        if isinstance(subjects, str) or not isinstance(subjects, Iterable):
            raise ArgumentError(f"`subjects` must be a list of names. Received: {subjects!r}")
        return self.user_store.enroll([check_name(name, "subjects") for name in subjects])

    def revoke(self, subject: str) -> User:
        """Shut a user out of every codebook made from now on.

        Nobody else's key changes. What is exported already stays readable to the
        user: export again (a new codebook is made by itself).

        Returns:
            The `User`, as listed: `"revoked"`.

        Raises:
            LedgerError: unknown or already revoked, or t users are revoked already.

        Example:
        >>> authority.revoke("bob").status
        'revoked'
        """
        return self.user_store.revoke(check_name(subject, "subject"))


def check_authority(authority: Any) -> Authority:
    """Refuse a path, which says nothing of the passphrase."""
    if isinstance(authority, Authority):
        return authority
    raise ArgumentError(
        "`authority` must be an Authority, from `Authority.open(path, passphrase)`. "
        f"Received: {type(authority).__name__}"
    )
