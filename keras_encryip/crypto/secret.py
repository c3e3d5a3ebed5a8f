"""Base of every object that holds a secret."""

from typing import Any, NoReturn


class Secret:
    """An object that never shows or copies what it holds.

    `repr` prints the class name and `_describe()`, which subclasses fill with
    public facts only. Pickling and copying raise: a secret leaves its object
    only through a method whose name says so.
    """

    __slots__ = ()

    def _describe(self) -> str:
        return "secret"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._describe()}>"

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(f"{type(self).__name__} holds a secret and cannot be pickled or copied.")
