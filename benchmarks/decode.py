"""What keys and decoding cost: `python benchmarks/decode.py [--json FILE] [--quick]`.

Everything runs on one core. Each figure is the median of repeated timings; a fast
call is timed, in CPU time of the process, in a loop of at least a few milliseconds.
"""

import os

# Before numpy is imported: its BLAS reads these once.
for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from keras_encryip.client.decoder import Decoder
from keras_encryip.crypto.kem import Header, MasterKey, PublicKey
from keras_encryip.crypto.signing import SigningKey
from keras_encryip.crypto.slots import DEFAULT_SLOTS, ReaderKey, SlotSecrets
from keras_encryip.labels.assignment import LabelAssignment
from keras_encryip.labels.codebook import Codebook, ModelMetadata

THRESHOLDS = (1, 4, 16)
SHAPES = ((144, 10), (704, 10), (2048, 10), (2048, 100), (2048, 1000), (100_064, 100_000))
CLASSES = ((10, 64), (1000, 2), (100_000, 1))
TRACE_LABELS = 64

Row = dict[str, Any]


def seconds(call: Callable[[], object], *, repeats: int, at_least: float = 0.005) -> float:
    """Median time of one call, in seconds."""
    call()  # warm caches
    loops = 1
    while (elapsed := _timed(call, loops)) < at_least:
        loops = max(2 * loops, int(1.2 * loops * at_least / max(elapsed, 1e-9)))
    return statistics.median(_timed(call, loops) / loops for _ in range(repeats))


def _timed(call: Callable[[], object], loops: int) -> float:
    start = time.process_time()
    for _ in range(loops):
        call()
    return time.process_time() - start


def decode(repeats: int) -> list[Row]:
    """Predictions per second, in batches of about four million outputs, at most 8,192 rows."""
    rows = []
    random = np.random.default_rng(0)
    for labels, classes in SHAPES:
        table = np.arange(labels, dtype=np.int32) % classes
        random.shuffle(table)
        names = [str(i) for i in range(classes)]
        codebook: Any = SimpleNamespace(num_labels=labels)
        decoder = Decoder(
            codebook, ModelMetadata(model="m", class_names=names), table, "0" * 16, bytes(32)
        )
        batch = max(1, min(8192, (1 << 22) // labels))
        confused = random.random((batch, labels), np.float32)
        took = seconds(lambda d=decoder, c=confused: d.probabilities(c), repeats=repeats)
        rows.append({"N": labels, "K": classes, "batch": batch, "predictions_per_s": batch / took})
    return rows


def keys(repeats: int) -> list[Row]:
    """Issuing, encapsulating and decapsulating, from bytes where a reader starts from bytes."""
    rows = []
    for threshold in THRESHOLDS:
        master = MasterKey.generate(threshold)
        public = PublicKey.from_bytes(master.public_key().to_bytes())
        user = master.issue()
        data = master.encapsulate()[0].to_bytes()
        header = Header.from_bytes(data)
        calls: dict[str, Callable[[], object]] = {
            "issue": lambda m=master: m.issue().key_id,
            "encapsulate_owner": master.encapsulate,
            "encapsulate_public": public.encapsulate,
            "parse_header": lambda d=data: Header.from_bytes(d),
            "decapsulate": lambda u=user, h=header: u.decapsulate(h),
        }
        row: Row = {"t": threshold}
        for name, call in calls.items():
            row[f"{name}_ms"] = 1000 * seconds(call, repeats=repeats)
        rows.append(row)
    return rows


def codebooks(repeats: int, threshold: int = 4) -> list[Row]:
    """Opening a codebook: parse its bytes, verify its signature, read metadata and decode table."""
    rows = []
    for classes, homophones in CLASSES:
        master, signing_key = MasterKey.generate(threshold), SigningKey.generate()
        slots = SlotSecrets(bytes(32), DEFAULT_SLOTS)
        assignment = LabelAssignment.draw(classes, homophones, TRACE_LABELS, slots.count)
        metadata = ModelMetadata(model="m", class_names=[str(i) for i in range(classes)])
        start = time.process_time()
        data = Codebook.make(assignment, metadata, master, slots, signing_key).to_bytes()
        made = time.process_time() - start
        codebook, point = Codebook.from_bytes(data), master.issue()
        user = ReaderKey(point, slots.of_user(point.key_id))
        issuer = signing_key.public_bytes()
        calls: dict[str, Callable[[], object]] = {
            "parse": lambda d=data: Codebook.from_bytes(d),
            "verify": lambda c=codebook, i=issuer: c.verify(i),
            "read": lambda c=codebook, u=user: c.open(u),
        }
        row: Row = {
            "K": classes,
            "N": codebook.num_labels,
            "t": threshold,
            "bytes": len(data),
            "make_ms": 1000 * made,
        }
        for name, call in calls.items():
            row[f"{name}_ms"] = 1000 * seconds(call, repeats=repeats)
        row["open_ms"] = sum(row[f"{name}_ms"] for name in calls)
        rows.append(row)
    return rows


def machine() -> dict[str, str]:
    """Where and with what the figures were taken."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [li for li in cpuinfo.read_text().splitlines() if li.startswith("model name")]
        processor = models[0].partition(":")[2].strip() if models else processor
    libraries = {name: version(name) for name in ("numpy", "pycryptodome", "msgspec")}
    return {"processor": processor, "python": platform.python_version(), **libraries}


def show(console: Console, title: str, rows: list[Row]) -> None:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for name in rows[0]:
        table.add_column(name.removesuffix("_ms").replace("_", " "), justify="right")
    for row in rows:
        table.add_row(
            *(f"{v:,.0f}" if isinstance(v, int) or v >= 1000 else f"{v:.3g}" for v in row.values())
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also save the figures")
    parser.add_argument("--quick", action="store_true", help="3 repeats instead of 15")
    arguments = parser.parse_args()
    repeats = 3 if arguments.quick else 15
    console = Console()
    console.width = max(console.width, 100)
    about = machine()
    console.print("one core ·", " · ".join(f"{k} {v}" for k, v in about.items()))
    results = {"machine": about, "repeats": repeats}
    for name, title, measure in (
        ("decode", "Decoding float32 outputs", decode),
        ("keys", "Keys and headers, milliseconds", keys),
        ("codebooks", "Opening a codebook, milliseconds", codebooks),
    ):
        results[name] = measure(repeats)
        show(console, title, results[name])
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
