"""Honest folders of evidence, after changes."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from Crypto.Hash import SHA256

import keras_encryip as ke
from keras_encryip.crypto.encoding import canonical_json, encode_base64
from keras_encryip.labels.trace_set import TraceSet
from keras_encryip.tracing.statement import STATEMENT, SignedStatement, Statement, sign_statement
from keras_encryip.tracing.verify_evidence import verify_evidence

from .ground import ACCEPTED, authority, commit, issued, outcome, traced_release

Files = dict[str, bytes | None]
"""Name → new contents, or `None` for a file that goes."""


def changed(
    honest: Path,
    folder: Path,
    files: Files,
    change: Callable[[Statement], Statement] | None,
    signer: ke.Authority | None = None,
) -> Path:
    """A copy with other files.

    Args:
        change: of the statement, whose digests are then adapted; `None` leaves it as it is.
        signer: signs the statement; without one, the old signature stays.
    """
    shutil.copytree(honest, folder)
    for name, data in files.items():
        (folder / name).unlink(missing_ok=True)
        if data is not None:
            (folder / name).write_bytes(data)
    if change is None:
        return folder
    path = folder / STATEMENT
    signed = msgspec.json.decode(path.read_bytes(), type=SignedStatement)
    others = [p for p in folder.iterdir() if p != path]
    digests = {p.name: SHA256.new(p.read_bytes()).hexdigest() for p in others}
    statement = change(msgspec.structs.replace(signed.statement, files=digests))
    if signer is None:
        path.write_bytes(canonical_json(SignedStatement(statement, signed.signature)))
    else:
        path.write_bytes(sign_statement(statement, signer.keys.sign))
    return folder


def one_byte(honest: Path, folder: Path) -> dict[str, int]:
    """One bit of the first, the middle and the last byte of every file."""
    tried = refused = 0
    shutil.copytree(honest, folder)
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        for place in (0, len(data) // 2, len(data) - 1):
            path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
            tried += 1
            refused += outcome(lambda: verify_evidence(folder)) != ACCEPTED
        path.write_bytes(data)
    return {"tried": tried, "refused": refused}


def changed_evidence() -> dict[str, Any]:
    """What `verify_evidence` says to honest evidence of a service, and to forgeries of it.

    The service answers all trace inputs as its user's key does. The trace set or the codebook
    is then replaced by one that was never released, by four forgers: who writes files only;
    who also adapts the statement; another authority, which signs and names itself; and the
    owner, who signs.
    """
    random, replace = np.random.default_rng(), msgspec.structs.replace
    with authority() as (owner, folder), authority() as (other, _):
        key = issued(owner, "user", folder)
        codebook, wanted, traces = traced_release(
            owner, "digits", key, lambda wanted: random.random((len(wanted), 8, 8, 1))
        )
        commit(owner, codebook)
        answers = {x.tobytes(): int(k) for x, k in zip(traces.inputs, wanted, strict=True)}
        tracer = ke.Tracer(owner)
        report = tracer.service(lambda batch: [answers[x.tobytes()] for x in batch], model="digits")
        honest = folder / "honest"
        tracer.evidence(report, honest)
        others = TraceSet(random.random(traces.inputs.shape, np.float32), traces.labels)
        fresh = owner.model_store.current_codebook(codebook.codebook_id, fresh=True)
        cases: dict[str, tuple[Files, Callable[[Statement], Statement]]] = {
            "trace set": (
                {"trace-set.npy": others.secret_bytes()},
                lambda statement: replace(statement, trace_set=others.digest.hex()),
            ),
            "codebook": (
                {"codebook.json": fresh.to_bytes()},
                lambda statement: replace(statement, codebook=fresh.codebook_id.hex()),
            ),
        }
        found: dict[str, Any] = {
            "honest": outcome(lambda: verify_evidence(honest, issuer=owner.issuer)),
            "honest, another issuer expected": outcome(
                lambda: verify_evidence(honest, issuer=other.issuer)
            ),
            "one byte": one_byte(honest, folder / "bytes"),
        }
        issuer = encode_base64(other.issuer)
        for target, (files, change) in cases.items():

            def itself(s: Statement, change: Any = change) -> Statement:
                return replace(change(s), issuer=issuer)

            ways = {
                "files alone": (None, None),
                "statement adapted": (change, None),
                "signed by another authority": (itself, other),
                "signed by the owner": (change, owner),
            }
            found[f"{target} replaced"] = {}
            for way, (adapt, signer) in ways.items():
                path = changed(honest, folder / f"{target}, {way}", files, adapt, signer)
                verdict = outcome(lambda p=path: verify_evidence(p))
                found[f"{target} replaced"][way] = verdict
    return found
