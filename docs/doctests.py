"""griffe: the examples in docstrings become code blocks."""

import re
from typing import Any

from griffe import Extension

DOCTEST = re.compile(r"^( *)(>>> .*?)(?=\n *\n|\Z)", re.M | re.S)


class Doctests(Extension):
    def on_object(self, *, obj: Any, **_: Any) -> None:
        if obj.docstring:
            text = obj.docstring.value
            obj.docstring.value = DOCTEST.sub(r"\n\1```pycon\n\1\2\n\1```", text)
