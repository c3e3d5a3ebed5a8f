"""Keeps TensorFlow's log lines off a terminal; whatever else is written there comes out."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_PASS_ON: Final = r"""
import re, sys
log = re.compile(rb"WARNING: All log messages before absl|[IWE]\d{4} [\d:.]+ ")
for line in sys.stdin.buffer:
    if not log.match(line):
        sys.stderr.buffer.write(line)
        sys.stderr.buffer.flush()
"""
"""All lines but those that TensorFlow logs. Fatal ones (F) remain: no exception tells of them."""


@contextmanager
def quiet_tensorflow() -> Iterator[None]:
    """Import TensorFlow inside: it logs nothing then, nor later, and uses no GPU.

    The environment says what it logs later. What it logs while it is loaded heeds no setting, so
    a second process passes on meanwhile what is written to standard error, log lines excepted.
    That process outlives this one: in a crash, too, nothing else is lost.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    try:
        terminal = os.dup(2)
    except OSError:  # there is no standard error to keep quiet
        yield
        return
    with subprocess.Popen(  # noqa: S603  our own program, written above
        [sys.executable, "-P", "-c", _PASS_ON],  # -P: no `re.py` of the folder that we are in
        stdin=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is not for it
    ) as passing:
        try:
            if passing.stdin is not None:
                os.dup2(passing.stdin.fileno(), 2)
            yield
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
