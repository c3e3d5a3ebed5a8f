"""What can go wrong between a client and a model server."""

from keras_encryip.errors import ServiceError


class PassingError(Exception):
    """A failure that may pass: the same question, sent again, may be answered.

    Attributes:
        retry_after: seconds that the server wants to be left alone, or `None`.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


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


def missing(package: str) -> ServiceError:
    return ServiceError(
        f"Asking this model server needs the package {package}. "
        'Install it with: pip install "keras_encryip[serving]"'
    )
