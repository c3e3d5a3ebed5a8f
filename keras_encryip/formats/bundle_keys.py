"""What a key bundle seals: one user's keys, by role. docs/formats/key-bundle.md has the bytes."""

from collections.abc import Sequence
from typing import Final, Literal

from keras_encryip.crypto.encoding import SCALAR_BYTES, encode_scalar
from keras_encryip.crypto.kem import UserKey, key_id
from keras_encryip.crypto.secret import Secret
from keras_encryip.crypto.slots import MAX_SLOTS, MIN_SLOTS, SLOT_KEY_BYTES, ReaderKey, SlotKeys
from keras_encryip.errors import ArgumentError, FormatError, KeyRefusedError

Role = Literal["read", "run"]
ROLES: Final[tuple[Role, ...]] = ("read", "run")
"""`read` decodes a model's answers, `run` runs a locked export. In the order of files."""

_EIGHT_SLOTS: Final = 1 + 8 * SLOT_KEY_BYTES
_SLOT_LENGTHS: Final = range(
    MIN_SLOTS // 8 * _EIGHT_SLOTS, MAX_SLOTS // 8 * _EIGHT_SLOTS + 1, _EIGHT_SLOTS
)
"""Lengths in bytes of the codeword and slot keys of each M that there is."""


def check_roles(roles: Sequence[str]) -> None:
    """Refuse roles that no bundle has: sorted, distinct, at least one.

    Raises:
        FormatError
    """
    if not roles or list(roles) != [role for role in ROLES if role in roles]:
        raise FormatError("Field roles must be a sorted list of distinct 'read' and 'run'.")


def check_length(length: int, roles: Sequence[str]) -> None:
    """Refuse lengths in bytes of `BundleKeys.secret_bytes` that do not go with the roles.

    Raises:
        FormatError
    """
    points = SCALAR_BYTES * (1 + len(roles))
    if length - points not in (_SLOT_LENGTHS if "read" in roles else (0,)):
        raise FormatError(f"Keys for {' and '.join(roles)} never have {length} bytes.")


class BundleKeys(Secret):
    """One user's keys: a point (z, P(z)) on the polynomial of each role, and slot keys to read.

    Args:
        z: of both points, 1 … q−1.
        read: the point on the reading polynomial, or `None`.
        run: the point on the running polynomial, or `None`.
        slots: the user's slot keys, exactly where `read` is.

    Attributes:
        z: names the user.
        roles: `("read", "run")` or one of them.
    """

    __slots__ = ("_points", "_slots", "roles", "z")

    def __init__(
        self,
        z: int,
        *,
        read: UserKey | None = None,
        run: UserKey | None = None,
        slots: SlotKeys | None = None,
    ) -> None:
        points = {"read": read, "run": run}
        self._points = {role: point for role, point in points.items() if point is not None}
        self._slots = slots
        self.z = z
        self.roles: tuple[Role, ...] = tuple(role for role in ROLES if role in self._points)
        if not self.roles:
            raise ArgumentError("Keys need at least one of the roles 'read' and 'run'.")
        if any(point.z != z for point in self._points.values()):
            raise ArgumentError("The points of a user's keys must all lie at `z`.")
        if (slots is None) == ("read" in self.roles):
            raise ArgumentError("Slot keys come with the role 'read', and with no other.")

    def _describe(self) -> str:
        return f"{self.key_id} roles={','.join(self.roles)}"

    @property
    def key_id(self) -> str:
        """16 hexadecimal digits that name the keys."""
        return key_id(self.z)

    @property
    def reader(self) -> ReaderKey:
        """What reads models.

        Raises:
            KeyRefusedError: the keys lack the role `read`.
        """
        if "read" not in self._points or self._slots is None:
            raise KeyRefusedError(
                f"Key {self.key_id} runs models, and does not read their answers: ask the model's "
                "owner for a key bundle with the role 'read'."
            )
        return ReaderKey(self._points["read"], self._slots)

    @property
    def runner(self) -> UserKey:
        """What opens locked exports.

        Raises:
            KeyRefusedError: the keys lack the role `run`.
        """
        if "run" not in self._points:
            raise KeyRefusedError(
                f"Key {self.key_id} reads models' answers, and does not run models: ask the "
                "model's owner for a key bundle with the role 'run'."
            )
        return self._points["run"]

    def secret_bytes(self) -> bytes:
        """z ‖ P_role(z) of each role ‖ with `read`: codeword (M/8) ‖ slot keys (16·M). Secret."""
        values = [point.secret_bytes()[SCALAR_BYTES:] for point in self._points.values()]
        slots = b"" if self._slots is None else self._slots.secret_bytes()
        return encode_scalar(self.z) + b"".join(values) + slots

    @classmethod
    def from_secret_bytes(cls, data: bytes, roles: Sequence[str]) -> "BundleKeys":
        """Read what `secret_bytes` wrote.

        Args:
            data: the bytes.
            roles: what they are for, sorted.

        Raises:
            FormatError: a length that does not go with the roles, or a scalar out of range.
        """
        check_roles(roles)
        check_length(len(data), roles)
        z = data[:SCALAR_BYTES]
        points = {
            role: UserKey.from_secret_bytes(z + data[i * SCALAR_BYTES : (i + 1) * SCALAR_BYTES])
            for i, role in enumerate(roles, 1)
        }
        slots = data[SCALAR_BYTES * (1 + len(roles)) :]
        return cls(
            int.from_bytes(z, "big"),
            read=points.get("read"),
            run=points.get("run"),
            slots=SlotKeys.from_secret_bytes(slots) if slots else None,
        )
