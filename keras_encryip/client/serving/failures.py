"""What can go wrong between a client and a server, and how long to wait before asking again."""

import secrets
from typing import Any, Final

from keras_encryip.errors import EncryipError, ServiceError

MAX_BACKOFF_S: Final = 30.0


class PassingError(EncryipError):
    """A failure that may pass: the same question, sent again, may be answered.

    Attributes:
        retry_after: seconds that the server wants to be left alone, or `None`.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class LateError(EncryipError):
    """No answer within the time for it."""


class UntrustedError(EncryipError):
    """No trusted connection; the words say why a certificate was not accepted."""


def retry_delay(attempt: int, backoff: float, wanted: Any, *, most_wanted: float) -> float:
    """Seconds to wait before a question is sent again for the `attempt`-th time, counted from 0.

    Half to all of `backoff`·2^`attempt` at random, so that clients which failed together spread
    out, at most 30 s; or what the server wants, a number, if that is more, at most `most_wanted`.
    """
    longest = min(backoff * 2.0 ** min(attempt, 100), MAX_BACKOFF_S)
    delay = longest * secrets.SystemRandom().uniform(0.5, 1)
    if isinstance(wanted, int | float) and wanted > delay:
        return max(delay, min(float(wanted), most_wanted))
    return delay


def too_large(limit: int) -> ServiceError:
    return ServiceError(
        f"The model server's answer is larger than {limit} bytes. Ask with a smaller `batch_size`, "
        "or raise `max_answer_bytes`."
    )


def too_late(timeout: float) -> ServiceError:
    return ServiceError(
        f"The model server gave no answer within {timeout:g} s. Raise `timeout`, or ask with a "
        "smaller `batch_size`."
    )


def untrusted(detail: str) -> ServiceError:
    return ServiceError(
        f"No trusted connection to the model server: {detail}. `ca_file` must hold the certificate "
        "that signed the server's, the host in `url` be a name in the server's, and `certificate` "
        "be given if the server asks for one."
    )
