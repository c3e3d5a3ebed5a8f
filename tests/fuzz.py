"""Changed files for every parser: only errors of ours, soon, in little memory.

    python -m tests.fuzz [--seconds 10] [--seed 0] [--only NAME …]

Starts from whole files of each kind, changes some bytes, cuts, repeats, swaps pieces, blows numbers
up, and gives them to their readers until the time for each is over. Prints a table: what was
refused, what was still read, the slowest case, and the most memory, as a multiple of the file's
size beyond 16 MiB. Any exception but an `EncryipError` (of a server: a refusal), a case over two
seconds, and memory over four times the file are failures: they are saved and named, and the exit
code is 1.
"""

import argparse
import functools
import json
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
import tracemalloc
import urllib.parse
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.progress import track
from rich.table import Table
from tensorflow_serving.apis import predict_pb2

import keras_encryip as ke
from keras_encryip.cli.rest_api import answer_rest
from keras_encryip.cli.rest_server import Refusal
from keras_encryip.cli.served_versions import ServedVersions
from keras_encryip.client import read_sealed
from keras_encryip.client.serving.grpc import GrpcTransport
from keras_encryip.formats.key_bundle import KeyBundle
from keras_encryip.formats.key_pair import X25519PrivateKey, X25519PublicKey, write_key_pair
from keras_encryip.formats.lock import FILE_NAME as LOCK
from keras_encryip.formats.lock import Lock, read_lock
from keras_encryip.formats.responses import parse_response, read_outputs
from keras_encryip.formats.version_folder import ASSETS, read_codebook
from keras_encryip.labels.ciphertext import LabelCiphertext
from keras_encryip.labels.codebook import Codebook
from keras_encryip.labels.trace_set import TraceSet
from keras_encryip.tracing.report import TraceReport
from keras_encryip.tracing.service.transcript import Transcript
from keras_encryip.tracing.weights import read_kernels

PASSPHRASE = "correct horse"
MAX_SECONDS = 2.0
MAX_MULTIPLE = 4.0
FREE_BYTES = 16 << 20
INTERESTING = [0, 1, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1]


@dataclass
class Parser:
    """One reader, and what a run found of it."""

    seeds: list[bytes]
    read: Callable[[bytes], Any]
    cases: int = 0
    refused: int = 0
    seconds: float = 0.0
    multiple: float = 0.0
    failures: list[str] = field(default_factory=list)


def mutant(seed: bytes, draw: random.Random) -> bytes:
    """A seed, changed in one to six ways."""
    data = bytearray(seed)
    for _ in range(draw.randint(1, 6)):
        at = draw.randrange(len(data) + 1)
        size = min(len(data) - at, 1 << draw.randrange(12))
        how = draw.randrange(8)
        if how == 0:
            data[at : at + 1] = bytes([draw.randrange(256)])
        elif how == 1:
            del data[at : at + size]
        elif how == 2:
            data[at:at] = draw.randbytes(size)
        elif how == 3:
            data[at:at] = data[at : at + size] * draw.choice([1, 2, 50])
        elif how == 4:
            number = draw.choice(INTERESTING)
            data[at : at + 8] = number.to_bytes(8, draw.choice(["little", "big"]))
        elif how == 5:
            data[at : at + 1] = str(draw.choice(INTERESTING)).encode()
        elif how == 6:
            data[at : at + 1] = draw.choice([b"[", b"]", b"{", b"}", b'"', b",", b"\0", b"\xff"])
        else:
            del data[at:]
        data = data[: 4 << 20]
    return bytes(data)


def run(parser: Parser, seconds: float, draw: random.Random) -> None:
    """Give a reader mutants for some seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        data = mutant(draw.choice(parser.seeds), draw)
        parser.cases += 1
        tracemalloc.reset_peak()
        before, start = tracemalloc.get_traced_memory()[0], time.monotonic()
        try:
            parser.read(data)
        except (ke.EncryipError, Refusal):
            parser.refused += 1
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            fail(parser, data, "".join(traceback.format_exception_only(error)).strip())
        took = time.monotonic() - start
        peak = tracemalloc.get_traced_memory()[1] - before - FREE_BYTES
        multiple = max(0.0, peak / max(1, len(data)))
        parser.seconds = max(parser.seconds, took)
        parser.multiple = max(parser.multiple, multiple)
        if took > MAX_SECONDS:
            fail(parser, data, f"{took:.1f} s")
        if multiple > MAX_MULTIPLE:
            fail(parser, data, f"{multiple:.1f} times its size")


def fail(parser: Parser, data: bytes, why: str) -> None:
    """Keep what failed, to be tried again."""
    with tempfile.NamedTemporaryFile(prefix="fuzz-", delete=False) as file:
        file.write(data)
    parser.failures.append(f"{why[:200]} ({file.name})")


def parsers(place: Path) -> dict[str, Parser]:
    """Every reader of files and answers, with whole files to begin with."""
    with ke.Authority.create(place / "a.authority", "owner", scrypt_log2_n=14) as authority:
        folder, locked = _exported(authority, place)
        user_key = write_key_pair(place / "a.pem", place / "p.pem", PASSPHRASE)
        bundles = [place / "one.keybundle", place / "two.keybundle"]
        authority.issue("one", bundles[0], passphrase=PASSPHRASE, scrypt_log2_n=14)
        authority.issue("two", bundles[1], public_key=user_key)
        ke.seal_folder(authority, folder, place / "digits.sealed", model="digits")
        tracer = ke.Tracer(authority)
        report = tracer.bundle(bundles[0], PASSPHRASE)
        tracer.evidence(report, place / "evidence")
        keys = [read_lock(locked).content_key(authority.keys.run_master)]
    bundle = KeyBundle.read(bundles[0])
    decoder = ke.Decoder.open(folder, bundle, PASSPHRASE)
    codebook = read_codebook(folder)
    rows = np.full((3, codebook.num_labels), 1 / codebook.num_labels)
    x, path = np.zeros((4, 8)), place / "case"
    Transcript(place / "transcript", x, 3, natural=0).save()
    np.savez(place / "weights.npz", a=np.ones((3, 4)), b=np.ones(4))
    np.save(place / "rows.npy", rows)
    keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)]).save(place / "model.keras")
    traces = TraceSet(np.zeros((4, 8), np.float32), np.arange(4))

    def at(read: Callable[[Path], Any], name: str = "case") -> Callable[[bytes], Any]:
        def reading(data: bytes) -> Any:
            (place / name).write_bytes(data)
            return read(place / name)

        return reading

    def inside(whole: Path, inner: Path, read: Callable[[Path], Any]) -> Callable[[bytes], Any]:
        copy = Path(tempfile.mkdtemp(dir=place)) / whole.name
        shutil.copytree(whole, copy)

        def reading(data: bytes) -> Any:
            (copy / inner).write_bytes(data)
            return read(copy)

        return reading

    def of(*paths: Path) -> list[bytes]:
        return [each.read_bytes() for each in paths]

    answers = [
        json.dumps(answer).encode()
        for answer in (
            {"predictions": rows.tolist()},
            {"predictions": [{"confused": row.tolist()} for row in rows]},
            {"outputs": [{"b64": "YWJj"}] * 3},
            {"error": "no such model"},
        )
    ]
    found = {
        "codebook": Parser(of(folder / ASSETS / "codebook.json"), Codebook.from_bytes),
        "manifest": Parser(
            of(folder / ASSETS / "manifest.json"),
            inside(folder, ASSETS / "manifest.json", ke.verify_export),
        ),
        "lock": Parser(of(locked / ASSETS / LOCK), Lock.from_bytes),
        "key bundle": Parser(of(*bundles), KeyBundle.from_bytes),
        "key bundle, opened": Parser(
            of(bundles[0]), lambda data: KeyBundle.from_bytes(data).unlock(PASSPHRASE)
        ),
        "public key": Parser(of(place / "p.pem"), X25519PublicKey.from_pem),
        "private key": Parser(
            of(place / "a.pem"), lambda data: X25519PrivateKey.from_pem(data, PASSPHRASE)
        ),
        "sealed file": Parser(
            of(place / "digits.sealed"),
            at(lambda path: read_sealed(path, bundle, PASSPHRASE)),
        ),
        "server's JSON": Parser(answers, parse_response),
        "server's JSON, decoded": Parser(
            answers[:1], lambda data: decoder.probabilities(parse_response(data))
        ),
        "server's gRPC": _over_grpc(rows),
        "questions to `serve`": _asked_of_a_server(folder),
        "outputs, .npy": Parser(of(place / "rows.npy"), at(read_outputs, "case.npy")),
        "outputs, .csv": Parser(
            [b"0.25,0.75\n0.5,0.5\n", b"\xef\xbb\xbf1,0\r\n0,1\r\n"], at(read_outputs, "case.csv")
        ),
        "label ciphertext": Parser([codebook.ciphertext(3)], LabelCiphertext.from_bytes),
        "trace report": Parser([report.to_bytes()], TraceReport.from_bytes),
        "transcript": Parser(
            of(place / "transcript"), at(lambda path: Transcript(path, x, 3, natural=0))
        ),
        "trace set": Parser([traces.secret_bytes()], TraceSet.from_secret_bytes),
        "weights": Parser(
            of(place / "weights.npz", place / "model.keras", place / "rows.npy"), at(read_kernels)
        ),
    }
    index = Path("variables", "variables.index")
    data = next((folder / "variables").glob("*.data*")).relative_to(folder)
    for name, whole, file in (
        ("weights, a checkpoint's index", folder, index),
        ("weights, a checkpoint's data", folder, data),
        ("weights, locked index", locked, index),
    ):
        found[name] = Parser(
            of(whole / file), inside(whole, file, functools.partial(read_kernels, keys=keys))
        )
    for inner in sorted(p.relative_to(place / "evidence") for p in place.glob("evidence/*")):
        found[f"evidence, {inner}"] = Parser(
            of(place / "evidence" / inner), inside(place / "evidence", inner, ke.verify_evidence)
        )
    for parser in found.values():
        for seed in parser.seeds:  # each seed is whole
            if parser is not found["server's JSON"]:
                parser.read(seed)
    path.unlink(missing_ok=True)
    return found


def _over_grpc(rows: np.ndarray) -> Parser:
    """Answers of a model server, as its bytes come."""
    server = urllib.parse.urlsplit("grpc://127.0.0.1:1")
    bounds = {"timeout": 1.0, "max_answer_bytes": 16 << 20}
    secure = {"headers": {}, "ca_file": None, "certificate": None}
    transport = GrpcTransport(server, "digits", None, **bounds, **secure)

    def reading(data: bytes) -> Any:
        transport._predict = lambda *_, **__: data
        return transport.ask({}, "serving_default")

    seeds = []
    for name, array in (
        ("confused", rows.astype("float32")),
        ("encrypted", np.ones((3, 20), "int32")),
        ("ciphertext_bytes", np.array([b"abc"] * 3, object)),
    ):
        answer = predict_pb2.PredictResponse()
        answer.model_spec.name = "digits"
        answer.outputs[name].CopyFrom(tf.make_tensor_proto(array))
        seeds.append(answer.SerializeToString())
    return Parser(seeds, reading)


def _asked_of_a_server(folder: Path) -> Parser:
    """Questions of anybody to `encryip serve`."""
    versions = ServedVersions("digits", lambda: {1: folder})
    row = [0.5] * 8
    questions = (
        {"instances": [row, row]},
        {"instances": [{"inputs": row}], "signature_name": "serving_default"},
        {"inputs": [row, row]},
        {"inputs": {"inputs": [row]}, "signature_name": "encrypted_label"},
    )
    ask = functools.partial(answer_rest, versions, "POST", "/v1/models/digits:predict")
    return Parser([json.dumps(question).encode() for question in questions], ask)


def _exported(authority: ke.Authority, place: Path) -> tuple[Path, Path]:
    """A small model, plain and locked."""
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).random((256, 8)).astype("float32")
    y = (x[:, 0] * 3).astype(int)
    layers = [keras.layers.Dense(8, "relu"), keras.layers.Dense(3, "softmax")]
    classifier = keras.Sequential([keras.Input((8,)), *layers])
    options = {"homophones": 2, "trace_labels": 64, "class_names": ["a", "b", "c"]}
    model = ke.protect(classifier, authority, name="digits", **options)
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(x, y, epochs=5, verbose=0)
    folders = place / "plain" / "1", place / "locked" / "1"
    ke.export_saved_model(model, folders[0])
    ke.export_saved_model(model, folders[1], weights="locked")
    return folders


def table(found: dict[str, Parser]) -> Table:
    """What docs/evidence/reliability.md shows."""
    made = Table(title="changed files", title_justify="left")
    for column in (
        "parser",
        "cases",
        "refused",
        "read",
        "slowest, s",
        "memory, × size",
        "failures",
    ):
        made.add_column(column, justify="left" if column == "parser" else "right")
    for name, parser in found.items():
        made.add_row(
            name,
            f"{parser.cases:,}",
            f"{parser.refused:,}",
            f"{parser.cases - parser.refused:,}",
            f"{parser.seconds:.2f}",
            f"{parser.multiple:.1f}",
            str(len(parser.failures)),
        )
    return made


def main() -> int:
    parsing = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parsing.add_argument("--seconds", type=float, default=10.0, help="for each parser")
    parsing.add_argument("--seed", type=int, default=0)
    parsing.add_argument("--only", nargs="*", help="names of parsers")
    arguments = parsing.parse_args()
    warnings.simplefilter("ignore")
    console = Console(width=100)
    with tempfile.TemporaryDirectory() as place:
        found = parsers(Path(place))
        if arguments.only:
            found = {name: found[name] for name in arguments.only}
        tracemalloc.start()
        for name in track(found, "fuzzing", console=Console(stderr=True)):
            run(found[name], arguments.seconds, random.Random(f"{arguments.seed} {name}"))
    console.print(table(found))
    failures = [f"{name}: {why}" for name, parser in found.items() for why in parser.failures]
    for failure in failures[:50]:
        console.print(failure, markup=False, highlight=False)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
