"""Keys and tracing from a hundred to a million users, on a real ledger on disk.

    python benchmarks/tracing_scale.py [--largest 1000000] [--folder DIR] [--json FILE] [--png FILE]

One model (K = 10, h = 64, T = 64) is protected and adapted on random data, never trained:
that is enough for a trace set. Users are enrolled, and at 10², 10³, … users the script
measures the cost of enrolling, of opening the authority, and of tracing a decode table and
a black-box service that run on one user's real key bundle. Codewords are computed by each
trace, and kept nowhere. Everything runs in one thread. Shown are seconds of a clock on the
wall, with CPU seconds beside them where they tell more: other work on the machine does not
count in those.

The run can be interrupted: --folder keeps the ledger, and the JSON what was measured. Sizes
that the ledger has outgrown are taken from there. Peak memory is read from /proc and so
needs Linux.
"""

import os

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import argparse
import json
import multiprocessing
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from keras_encryip.authority.authority import Authority
from keras_encryip.authority.tracer import Tracer
from keras_encryip.client.decoder import Decoder
from keras_encryip.formats.key_bundle import KeyBundle
from keras_encryip.formats.text import as_shown

RESULTS = Path(__file__).resolve().parent / "results"
PASSPHRASE = "benchmark"
SMALLEST = 100
LAST = 1_000
"""Enrolling is timed for this many users, the last ones of each size."""
BUNDLES = 20
REPEATS = 3
BATCH = 50_000
"""Users in one call of `enroll`, which reads the names of all users first."""
TRAITOR = 99
CLASSES, HOMOPHONES, TRACE_LABELS, THRESHOLD = 10, 64, 64, 4
TARGET_SECONDS = 10.0

Row = dict[str, Any]


def name_of(number: int) -> str:
    return f"user-{number:07}"


@contextmanager
def timed(row: Row, what: str) -> Iterator[None]:
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    row[f"{what}_s"] = time.perf_counter() - wall
    row[f"{what}_cpu_s"] = time.process_time() - cpu


def in_fresh_process(call: Callable[..., Any], *arguments: Any) -> Any:
    """So that peak memory is that of one step, and Keras is loaded only where needed."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(call, *arguments).result()


def peak_mib() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


# --- steps, each in a process of its own -------------------------------------------------


def set_up(url: str) -> None:
    """An authority with one adapted model, and no user."""
    import keras

    import keras_encryip as ke

    random = np.random.default_rng(0)
    x, y = random.random((2000, 8, 8, 1), "float32"), random.integers(0, CLASSES, 2000)
    classifier = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(CLASSES, activation="softmax"),
        ]
    )
    with Authority.create(url, PASSPHRASE, threshold=THRESHOLD, scrypt_log2_n=14) as authority:
        options = {"homophones": HOMOPHONES, "trace_labels": TRACE_LABELS}
        ke.protect(classifier, authority, name="model", **options).adapt(x, y)


def grow(url: str, users: int) -> Row:
    """Enrol up to `users`; only the last ones are timed one by one."""
    row: Row = {}
    with Authority.open(url, PASSPHRASE) as authority:
        known = authority.user_store.count()
        last = max(known, users - LAST)
        row["bulk_users"] = last - known
        row["bulk_calls_of"] = BATCH
        with timed(row, "bulk"):
            for first in range(known, last, BATCH):
                authority.enroll(map(name_of, range(first, min(first + BATCH, last))))
        row["enrolled"] = users - last
        with timed(row, "enroll"):
            authority.enroll(map(name_of, range(last, users)))
    row["peak_mib"] = peak_mib()
    return row


def trace(url: str, folder: Path, users: int) -> Row:
    """Open the authority, then find who leaked a table, and who runs a service."""
    row: Row = {}
    with timed(row, "open"):
        authority = Authority.open(url, PASSPHRASE)
    row["open_peak_mib"] = peak_mib()
    authority.close()
    row.update(in_fresh_process(_trace, url, folder, users))
    return row


def _trace(url: str, folder: Path, users: int) -> Row:
    authority = Authority.open(url, PASSPHRASE)
    tracer, store = Tracer(authority), authority.model_store
    record = store.model_named("model")
    (codebook,) = store.codebooks_of(record.model_id)
    path = folder / "traitor.keybundle"
    if not path.exists():
        authority.issue(name_of(TRAITOR), path, passphrase=PASSPHRASE, scrypt_log2_n=14)
    decoder = Decoder.open(codebook, KeyBundle.read(path), PASSPHRASE)
    table = decoder.secret_table()
    said = {
        x.tobytes(): int(table[label])
        for traces in store.trace_sets_of(record)
        for x, label in zip(traces.inputs, traces.labels, strict=True)
    }
    calls = {
        "table": lambda: tracer.table(decoder, model="model"),
        "service": lambda: tracer.service(
            lambda batch: [said[x.tobytes()] for x in batch], model="model"
        ),
    }
    row: Row = {}
    for what, call in calls.items():
        rows: list[Row] = []
        for _ in range(REPEATS):
            rows.append({})
            with timed(rows[-1], what):
                report = call()
            assert [suspect.subject for suspect in report.guilty] == [name_of(TRAITOR)]
            assert report.tested == users
        for name in rows[0]:
            row[name] = statistics.median(r[name] for r in rows)
        row[f"{what}_runner_up"] = report.suspects[1].score
        row[f"{what}_least_score"] = report.threshold
    row["trace_peak_mib"] = peak_mib()
    authority.close()
    return row


def write_bundles(url: str, folder: Path) -> Row:
    """Real bundles at the default cost of a passphrase, for users not used before."""
    folder.mkdir(exist_ok=True)
    first = len(list(folder.iterdir()))
    row: Row = {"bundles": BUNDLES}
    with Authority.open(url, PASSPHRASE) as authority, timed(row, "issue"):
        for number in range(first, first + BUNDLES):
            path = folder / f"{number}.keybundle"
            authority.issue(name_of(number), path, passphrase=f"passphrase {number}")
    return row


# --- the whole run -----------------------------------------------------------------------


def measure(
    folder: Path, sizes: list[int], results: dict[str, Any], save: Callable[[], None]
) -> None:
    url = f"sqlite:///{folder}/scale.authority"
    if not (folder / "scale.authority").exists():
        in_fresh_process(set_up, url)
    done = {row["users"]: row for row in results["sizes"]}
    for users in sizes:
        if users in done:
            continue
        with Authority.open(url, PASSPHRASE) as authority:
            known = authority.user_store.count()
        if known > users:
            print(f"{users:,}: left out, the ledger in {folder} has {known:,} users already")
            continue
        if known == users:  # interrupted after enrolling: its time is lost
            grown: Row = {"enrolled": 0, "bulk_users": 0, "bulk_s": 0.0, "bulk_cpu_s": 0.0}
        else:
            grown = in_fresh_process(grow, url, users)
        row: Row = {"users": users, "enroll": grown}
        row["ledger_bytes"] = (folder / "scale.authority").stat().st_size
        row["trace"] = in_fresh_process(trace, url, folder, users)
        if users in (sizes[0], sizes[-1]):
            row["issue"] = in_fresh_process(write_bundles, url, folder / "bundles")
        results["sizes"].append(row)
        save()
        print(f"{users:,} users measured", flush=True)


def per_thousand(row: Row, what: str, users: int) -> tuple[float, float]:
    scale = 1000 / users if users else float("nan")
    nothing = float("nan")
    return row.get(f"{what}_s", nothing) * scale, row.get(f"{what}_cpu_s", nothing) * scale


def show(console: Console, results: dict[str, Any]) -> None:
    table = Table(
        "users",
        "enrol 1,000",
        "CPU",
        "ledger MB",
        "open",
        "trace table",
        "trace service",
        "CPU",
        "MiB, open",
        "MiB, trace",
        box=SIMPLE_HEAD,
        title="Seconds",
        title_justify="left",
    )
    for row in results["sizes"]:
        enroll = per_thousand(row["enroll"], "enroll", row["enroll"]["enrolled"])
        found = row["trace"]
        table.add_row(
            f"{row['users']:,}",
            *(f"{s:.2f}" for s in enroll),
            f"{row['ledger_bytes'] / 1e6:.1f}",
            *(f"{found[name]:.2f}" for name in ("open_s", "table_s", "service_s", "service_cpu_s")),
            *(f"{found[name]:,.0f}" for name in ("open_peak_mib", "trace_peak_mib")),
        )
    console.print(table)
    for row in results["sizes"]:
        bulk = row["enroll"]
        if "bulk_calls_of" in bulk and bulk["bulk_users"] >= 5_000:
            each = [1000 * bulk[name] / bulk["bulk_users"] for name in ("bulk_s", "bulk_cpu_s")]
            console.print(
                f"{bulk['bulk_users']:,} users more, in calls of up to {bulk['bulk_calls_of']:,}: "
                f"{bulk['bulk_s']:,.0f} s, {each[0]:.2f} ms each (CPU {each[1]:.2f} ms)"
            )
        if "issue" in row:
            each = row["issue"]["issue_s"] / row["issue"]["bundles"]
            console.print(
                f"{row['issue']['bundles']} bundles written among {row['users']:,} users: "
                f"{each:.3f} s each; 1,000 would take {1000 * each:,.0f} s"
            )
    largest = results["sizes"][-1]
    enrolling = max(
        per_thousand(r["enroll"], "enroll", r["enroll"]["enrolled"])[0]
        for r in results["sizes"]
        if r["enroll"]["enrolled"]
    )
    tracing = max(largest["trace"][f"{what}_s"] for what in ("table", "service"))
    for what, took in (
        ("enrolling 1,000 users, slowest size", enrolling),
        (f"tracing among {largest['users']:,}", tracing),
    ):
        verdict = "met" if took < TARGET_SECONDS else "MISSED"
        console.print(f"target below {TARGET_SECONDS:g} s, {what}: {took:.2f} s, {verdict}")


def plot(results: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    rows = results["sizes"]
    users = [row["users"] for row in rows]
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    lines = {
        "tracing a decode table": [r["trace"]["table_s"] for r in rows],
        "tracing a service that answers at once": [r["trace"]["service_s"] for r in rows],
        "opening the authority": [r["trace"]["open_s"] for r in rows],
        "enrolling 1,000 more": [
            per_thousand(r["enroll"], "enroll", r["enroll"]["enrolled"])[0] for r in rows
        ],
    }
    for (label, values), style in zip(lines.items(), ("o-", "s-", "^-", "d--"), strict=True):
        axes.plot(users, values, style, label=label)
    axes.axhline(TARGET_SECONDS, color="#b00020", linewidth=1, label="target: 10 s")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="users in the ledger",
        ylabel="seconds",
        title=f"K = {CLASSES}, T = {TRACE_LABELS}, t = {THRESHOLD}, one codebook, one thread",
    )
    axes.grid(which="major", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=120)


def machine() -> str:
    processor = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [li for li in cpuinfo.read_text().splitlines() if li.startswith("model name")]
        processor = models[0].partition(":")[2].strip() if models else processor
    names = ("numpy", "pycryptodome", "sqlalchemy", "keras")
    libraries = ", ".join(f"{name} {version(name)}" for name in names)
    return f"{processor}, one thread, Python {platform.python_version()}, {libraries}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--largest", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/encryip-scale"))
    parser.add_argument("--json", type=Path, default=RESULTS / "tracing-scale.json")
    parser.add_argument("--png", type=Path, default=RESULTS / "tracing-scale.png")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    sizes = [s for s in (10**e for e in range(2, 8)) if SMALLEST <= s <= args.largest]
    results: dict[str, Any] = {
        "machine": machine(),
        "setting": {
            "classes": CLASSES,
            "homophones": HOMOPHONES,
            "trace_labels": TRACE_LABELS,
            "threshold": THRESHOLD,
            "codebooks": 1,
            "repeats": REPEATS,
            "random": "keys from the operating system's generator; data from numpy's, seed 0",
        },
        "sizes": [],
    }
    fresh = not (args.folder / "scale.authority").exists()
    if args.json.exists() and not fresh:
        results["sizes"] = json.loads(args.json.read_text())["sizes"]

    def save() -> None:
        args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")

    measure(args.folder, sizes, results, save)
    results["sizes"].sort(key=lambda row: row["users"])
    save()
    console = Console()
    console.width = max(console.width, 130)
    console.print(as_shown(results["machine"]))
    show(console, results)
    plot(results, args.png)


if __name__ == "__main__":
    main()
