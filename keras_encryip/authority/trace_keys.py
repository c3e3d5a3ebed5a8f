"""Who leaked a key: `Tracer.bundle`, `Tracer.key` and `Tracer.combined_key`.

A file that names its user identifies them, and so does whatever others can know: a sealed bundle
was in the mail, and z of a revoked user stands in public headers. Guilt needs what only the user
had: a point at a secret z, or the slot keys of their codeword.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from keras_encryip.authority.authority import Authority
from keras_encryip.authority.earlier_evidence import EarlierEvidence
from keras_encryip.authority.schema import REVOKED
from keras_encryip.authority.score_users import score_users
from keras_encryip.authority.user_store import User
from keras_encryip.crypto.combined_key import CombinedKey, find_traitors
from keras_encryip.crypto.kem import UserKey, key_id
from keras_encryip.crypto.locked_weights import KEY_BYTES as CONTENT_KEY_BYTES
from keras_encryip.crypto.slots import SLOT_KEY_BYTES
from keras_encryip.errors import ArgumentError, ForeignKeyError, instead_of
from keras_encryip.formats.key_bundle import KeyBundle
from keras_encryip.formats.key_pair import X25519PrivateKey
from keras_encryip.tracing.report import MAX_SCORES, Findings, Suspect, TraceReport
from keras_encryip.tracing.statistics import FORGERY, corrected, observed_weights


def trace_bundle(
    owner: Authority,
    bundle: KeyBundle,
    passphrase: str | None,
    private_key: X25519PrivateKey | None,
) -> TraceReport:
    """What `Tracer.bundle` does."""
    if bundle.issuer != owner.issuer or bundle.authority != owner.public_key.digest:
        raise ForeignKeyError(
            f"Key bundle {bundle.header.key_id} was issued by another authority: "
            f"{bundle.header.issuer_name!r}."
        )
    leak = _Leak(owner, "bundle", {"signed by": owner.name})
    leak.evidence["subject in the bundle"] = bundle.header.subject
    if passphrase is None and private_key is None:
        leak.evidence["opened"] = "no: anybody who saw it on its way can have it"
        return leak.report([bundle.header.key_id], proof=False)
    keys = bundle.unlock(passphrase, private_key)
    leak.evidence["opened"] = "yes, to this user's keys"
    if "read" in keys.roles:
        leak.take_slot_keys(keys.reader.slots.keys)
    return leak.report([keys.key_id], proof=True)


def trace_key(
    owner: Authority, key: UserKey | bytes | None, slot_keys: Any | None = None
) -> TraceReport:
    """What `Tracer.key` does."""
    if isinstance(key, bytes) and len(key) == CONTENT_KEY_BYTES and slot_keys is None:
        return _trace_content_key(owner, key)
    if isinstance(key, bytes):
        key = UserKey.from_secret_bytes(key)
    if not isinstance(key, UserKey | None) or (key is None and slot_keys is None):
        raise ArgumentError(
            "`key` must be a UserKey or its 64 bytes, or a key file's 32; or None if `slot_keys` "
            f"are given. Received: {type(key).__name__}"
        )
    leak, names = _Leak(owner, "key", {}), []
    if key is not None:
        masters = {"reading": owner.keys.read_master, "running": owner.keys.run_master}
        on = [
            name
            for name, master in masters.items()
            if master.user_key(key.z).secret_bytes() == key.secret_bytes()
        ]
        leak.evidence["on the owner's polynomial"] = on[0] if on else "no: not a key"
        names = [key.key_id] if on else []
    if slot_keys is not None:
        leak.take_slot_keys(_slot_keys(slot_keys, owner.keys.slots.count))
    report = leak.report(names, proof=True)
    if names and not owner.user_store.with_keys(names):
        report.evidence["never issued"] = (
            f"a fresh point: at least {owner.threshold + 1} users pooled their keys"
        )
    return report


def _trace_content_key(owner: Authority, key: bytes) -> TraceReport:
    """Whose copy a key file opens."""
    for lock, recipient, folder, day in reversed(owner.export_store.locks()):
        if lock.content_key(owner.keys.run_master) == key:
            evidence = {"opens the locked export": folder, "made": day}
            if recipient is None:
                evidence["made for"] = "nobody by name"
            leak = _Leak(owner, "key file", evidence)
            return leak.report([] if recipient is None else [recipient], proof=False)
    return _Leak(owner, "key file", {"opens": "no locked export of this authority"}).report(
        [], proof=False
    )


def trace_combined_key(
    owner: Authority, weights: Sequence[int], nodes: Sequence[int]
) -> TraceReport:
    """What `Tracer.combined_key` does."""
    combined = CombinedKey(nodes, weights)
    threshold = owner.threshold
    if len(combined.nodes) != threshold:
        raise ArgumentError(
            f"`nodes` must hold threshold={threshold} integers. Received: {len(combined.nodes)}"
        )
    issued = owner.user_store.zs().values()
    masters = (owner.keys.read_master, owner.keys.run_master)
    results = (find_traitors(combined, issued, master.user_key) for master in masters)
    traitors = next((zs for zs in results if zs), ())
    evidence = {
        "at most this many are found": max(1, threshold // 2),
        "keys combined": len(traitors) or "unknown: too many, or not made from keys",
    }
    leak = _Leak(owner, "combined key", evidence)
    return leak.report([key_id(z) for z in traitors], proof=True)


@dataclass(repr=False)
class _Leak:
    """What was found, and what speaks against whom.

    Attributes:
        slot_keys: uint8 `[M, 16]`, those that were found.
        bits: int8 `[M]`, which of a slot's two keys that is, -1 for neither.
        earlier: evidence that was written before.
    """

    owner: Authority
    kind: str
    evidence: dict[str, Any]
    slot_keys: np.ndarray | None = None
    bits: np.ndarray | None = None
    earlier: EarlierEvidence = field(init=False)

    def __post_init__(self) -> None:
        self.earlier = EarlierEvidence.read(self.owner.ledger)

    def take_slot_keys(self, keys: np.ndarray) -> None:
        same = (self.owner.keys.slots.keys == keys[:, None]).all(axis=2)
        self.slot_keys = keys
        self.bits = np.where(same.any(axis=1), same.argmax(axis=1), -1).astype(np.int8)
        known = int((self.bits >= 0).sum())
        self.evidence["slot keys that work"] = f"{known} of {len(self.bits)}"

    def report(self, names: Sequence[str], *, proof: bool) -> TraceReport:
        """By slot keys, if there are any, and by the users whom a point names.

        Args:
            names: key ids of the users whose points were found, or named in a file.
            proof: whether only these users can have had what was found, but for z that
                are public.
        """
        users = self.owner.user_store
        named = [self._named(user, proof=proof) for user in users.with_keys(names)]
        findings = self._by_point(named, proof)
        if self.bits is not None:
            findings = self._by_slot_keys(self.bits)
        by_key = {s.key_id: s for s in findings.suspects}
        for suspect in named:
            other = by_key.get(suspect.key_id, suspect)
            chance = min(suspect.p_value, other.p_value)
            by_key[suspect.key_id] = msgspec.structs.replace(
                other, p_value=chance, identified=other.identified or suspect.identified
            )
        suspects = sorted(by_key.values(), key=lambda s: (s.p_value, not s.identified))
        shown = msgspec.structs.replace(findings, suspects=suspects)
        convicted = [] if self.bits is None else [s.key_id for s in findings.suspects if s.guilty]
        exhibits = {
            "slot_keys": self.slot_keys,
            "bits": self.bits,
            "convicted": convicted,
            "earlier": self.earlier.events,
        }
        return TraceReport(shown, exhibits)

    def _named(self, user: User, *, proof: bool) -> Suspect:
        secret = proof and user.status != REVOKED
        chance = corrected(FORGERY, self.owner.user_store.count()) if secret else 1.0
        return Suspect(user.subject, user.key_id, user.status, 1.0, chance, identified=not secret)

    def _by_slot_keys(self, bits: np.ndarray) -> Findings:
        secrets = self.owner.keys.slots
        both = np.tile([0, 1], (secrets.count, 1))
        weights = observed_weights(bits, both, secrets.biases)
        users, slots = self.owner.user_store, np.arange(secrets.count)
        scored = score_users(users, secrets, slots, [weights], earlier=self.earlier)
        return scored.findings(users, evidence=self.evidence, kind=self.kind, model="")

    def _by_point(self, named: list[Suspect], proof: bool) -> Findings:
        tested = self.owner.user_store.count()
        others = [0.0] * min(tested - len(named), MAX_SCORES)
        return Findings.now(
            evidence=self.evidence,
            kind=self.kind,
            model="",
            score_name="match",
            scores=[s.score for s in named] + others,
            suspects=named,
            tested=tested,
            tests=max(1, tested),
            threshold=1.0 if proof else None,
        )


def _slot_keys(given: Any, count: int) -> np.ndarray:
    """uint8 `[M, 16]`, rows of zeros where a slot's key is unknown."""
    keys = given
    if not isinstance(given, np.ndarray):
        with instead_of(
            TypeError,
            ValueError,
            OverflowError,
            raises=lambda _: ArgumentError(
                f"`slot_keys` must hold {count} slot keys of {SLOT_KEY_BYTES} bytes each. "
                f"Received: {type(given).__name__}"
            ),
        ):
            rows = [bytes(SLOT_KEY_BYTES) if row is None else row for row in given]
            keys = np.array([list(r) if isinstance(r, bytes) else np.asarray(r) for r in rows])
    good = keys.shape == (count, SLOT_KEY_BYTES) and keys.dtype.kind in "iuf"
    if not good or not ((keys >= -1) & (keys <= 255)).all():
        raise ArgumentError(
            f"`slot_keys` must hold {count} slot keys of {SLOT_KEY_BYTES} bytes each; zeros, -1 or "
            f"None where one is unknown. Received: shape {keys.shape}, {keys.dtype}"
        )
    return np.where((keys < 0).any(axis=1, keepdims=True), 0, keys).astype(np.uint8)
