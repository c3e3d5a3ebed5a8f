"""Forgers: can a key, a claim to a model, or the evidence of a trace be made up?

random keys    points (z, y) that the owner never gave out, half of them at a user's z
pooled keys    m = 1 … t + 2 users combine their keys with random shares, or interpolate
               them and mint a new one; or choose the shares that fit the z of innocents, if
               they know them (`find_traitors` states when these are named)
claims         a forger makes trace inputs for an invented model until a service that runs
               something else answers as an innocent's key would; as an authority of the
               forger's own, and as the owner
evidence       an honest folder of evidence after changes

Nothing but the claims and the evidence needs a trained model.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import keras
import msgspec
import numpy as np
import tensorflow as tf
from Crypto.Hash import SHA256
from Crypto.Random import get_random_bytes
from scipy.stats import binomtest

import keras_encryip as ke
from keras_encryip.client.bundle import KeyBundle
from keras_encryip.crypto.encoding import canonical_json, encode_base64
from keras_encryip.crypto.field import ORDER, evaluate, inverse, random_scalar
from keras_encryip.crypto.kem import Header, SharedSecret, UserKey
from keras_encryip.crypto.polynomials import interpolate
from keras_encryip.crypto.traitors import CombinedKey
from keras_encryip.errors import EncryipError, ForeignKeyError
from keras_encryip.labels.assignment import LabelAssignment
from keras_encryip.labels.codebook import Codebook, ModelMetadata
from keras_encryip.owner.consistency import MODEL_EXPORTED
from keras_encryip.tracing.evidence import (
    STATEMENT,
    SignedStatement,
    Statement,
    sign_statement,
    verify_evidence,
)
from keras_encryip.tracing.report import TraceReport
from keras_encryip.tracing.trace_set import TraceSet

from .cells import Cells
from .data import CLASSES, Data, load
from .removal import PASSPHRASE, SCRYPT, World, world
from .sizes import Size
from .tampering import decoded_classifier, predict
from .training import augments, train

KEYS = 1000
THRESHOLDS = (1, 2, 4, 8)
COALITIONS = 10
"""Of each number of members."""

USERS = 100
HOMOPHONES, TRACE_LABELS, OWNERSHIP_INPUTS = 4, 64, 32
FITTING_STEPS = 200
SCAPEGOAT = "scapegoat"
ACCEPTED = "accepted"


def outcome(action: Callable[[], Any]) -> str:
    """`"accepted"`, or the library's refusal."""
    try:
        action()
    except EncryipError as error:
        return f"{type(error).__name__}: {error}"
    return ACCEPTED


@contextmanager
def authority(threshold: int = 4) -> Iterator[tuple[ke.Authority, Path]]:
    """An authority of its own, in a folder that is deleted with it."""
    with TemporaryDirectory() as name:
        options: dict[str, Any] = {"threshold": threshold, "scrypt_log2_n": SCRYPT}
        with ke.Authority.create(f"sqlite:///{name}/a", PASSPHRASE, **options) as made:
            yield made, Path(name)


def issued(owner: ke.Authority, subject: str, folder: Path) -> UserKey:
    """A user's key, out of the bundle that the user gets."""
    path = folder / f"{subject}.keybundle"
    owner.issue(subject, path, passphrase=PASSPHRASE, scrypt_log2_n=SCRYPT)
    return KeyBundle.read(path).unlock(PASSPHRASE)


def release(owner: ke.Authority, name: str) -> tuple[Codebook, LabelAssignment]:
    """The codebook of a model that nobody trained."""
    assignment = LabelAssignment.draw(CLASSES, HOMOPHONES, TRACE_LABELS)
    metadata = ModelMetadata(model=name, class_names=[str(k) for k in range(CLASSES)])
    return owner.add_model(metadata, assignment), assignment


def commit(owner: ke.Authority, codebook: Codebook) -> None:
    """What an export writes into the ledger."""
    kernels = [np.zeros((1, 1), np.float32)]
    owner.add_export(codebook, b"", folder="1", recipient=None, kernels=kernels)


def traced_release(
    owner: ke.Authority, name: str, key: UserKey, make: "MakeInputs"
) -> tuple[Codebook, np.ndarray, TraceSet]:
    """A model that nobody trained, with trace inputs made for what `key` reads: the wanted
    classes, `[n]`. Not committed to yet."""
    codebook, assignment = release(owner, name)
    ordinary = np.random.default_rng().choice(assignment.labels.ravel(), OWNERSHIP_INPUTS)
    labels = np.concatenate([assignment.trace, ordinary])
    wanted = codebook.decode_table(key)[labels]
    traces = TraceSet(make(wanted).astype(np.float32), labels)
    owner.save_training(owner.model_of(codebook.codebook_id).model_id, b"", traces)
    return codebook, wanted, traces


# --- keys --------------------------------------------------------------------------------


def value_of(key: UserKey) -> int:
    return int.from_bytes(key.secret_bytes()[32:], "big")


def opens(codebook: Codebook, key: Any) -> bool:
    """Whether a key passes the codebook's own test of access."""
    try:
        codebook.open_metadata(key)
    except ForeignKeyError:
        return False
    return True


def reads(codebook: Codebook, assignment: LabelAssignment, key: Any) -> float:
    """Share of the ordinary labels whose class a key reads: 1 / K by chance."""
    ordinary = assignment.labels.ravel()
    table = codebook.decode_table(key)
    return float((table[ordinary] == assignment.classes[ordinary]).mean())


def random_keys(n: int) -> dict[str, Any]:
    """`"opened at most"` is the exact upper bound at 95 %, about 3 / n for none."""
    with authority() as (owner, folder):
        real = issued(owner, "user", folder)
        codebook, assignment = release(owner, "digits")
        traced = opened = 0
        read = []
        for i in range(n):
            z = real.z if i % 2 else random_scalar(get_random_bytes)
            key = UserKey(z, random_scalar(get_random_bytes))
            report = owner.trace_key(key)
            traced += bool(report.guilty) or report.evidence["on the owner's polynomial"] == "yes"
            opened += opens(codebook, key)
            if i % 10 == 0:
                read.append(reads(codebook, assignment, key))
    bound = binomtest(opened, n, alternative="less").proportion_ci(0.95).high
    return {
        "tried": n,
        "on the polynomial": traced,
        "opened": opened,
        "opened at most": float(bound),
        "ordinary labels read": float(np.mean(read)),
    }


@dataclass(frozen=True)
class Pooled:
    """A decoder made of several users' keys: a combined key for every header."""

    keys: Sequence[UserKey]
    shares: Sequence[int]
    key_id = "pooled"

    def combined(self, header: Header) -> CombinedKey:
        return CombinedKey.combine(self.keys, self.shares, header.nodes)

    def decapsulate(self, header: Header) -> SharedSecret:
        return self.combined(header).decapsulate(header)


def random_shares(members: int) -> list[int]:
    """Integers that sum to 1 modulo q."""
    free = [random_scalar(get_random_bytes) for _ in range(members - 1)]
    return [*free, (1 - sum(free)) % ORDER]


def framing_shares(own: Sequence[int], others: Sequence[int], nodes: Sequence[int]) -> list[int]:
    """The members' shares in the one relation among the vectors of t + 2 users.

    Σ β_i·z_i/(z_i − x) vanishes at 0 and the nodes for β_i = Π_j (z_i − x_j) / Π_{k≠i} (z_i − z_k):
    the members' part is, up to a factor, a combination of the others' keys.
    """
    shares = []
    for z in own:
        above = below = 1
        for x in nodes:
            above = above * (z - x) % ORDER
        for other in (*own, *others):
            below = below * (z - other) % ORDER if other != z else below
        shares.append(above * inverse(below) % ORDER)
    total = inverse(sum(shares))
    return [share * total % ORDER for share in shares]


OUTCOMES = (
    "opened",
    "read all",
    "all",
    "some",
    "nobody",
    "innocents",
    "framed",
    "minted",
    "on the polynomial",
)


def pooled_keys(threshold: int, coalitions: int, seed: int) -> dict[str, dict[str, Any]]:
    """For each number of members, in how many coalitions which attack came out how.

    Returns:
        `"m users"` → counts: a combined key was `"opened"`, and `"read all"` ordinary labels;
        it named `"all"` its owners and nobody else, `"some"` of them, `"nobody"`, or
        `"innocents"`; `"framed"`: shares that fit t + 2 − m known z named one of these; a
        `"minted"` key opened the codebook, and `"on the polynomial"` it lay.
    """
    random = np.random.default_rng(seed)
    found = {}
    with authority(threshold) as (owner, folder):
        names = [f"user {i}" for i in range(threshold + 2)]
        users = {name: issued(owner, name, folder) for name in names}
        owner.enroll(f"bystander {i}" for i in range(USERS - len(users)))
        codebook, assignment = release(owner, "digits")
        nodes = codebook.access_header.nodes

        def named(pooled: Pooled) -> set[str]:
            weights = pooled.combined(codebook.access_header)._weights
            return {s.subject for s in owner.trace_combined_key(weights, nodes).guilty}

        for m in range(1, threshold + 3):
            row = dict.fromkeys(OUTCOMES, 0)
            for _ in range(coalitions):
                members = set(random.choice(names, m, replace=False).tolist())
                keys = [users[name] for name in members]
                pooled = Pooled(keys, random_shares(m))
                row["opened"] += opens(codebook, pooled)
                row["read all"] += reads(codebook, assignment, pooled) == 1
                accused = named(pooled)
                row["all"] += accused == members
                row["some"] += bool(accused) and accused < members
                row["nobody"] += not accused
                row["innocents"] += bool(accused - members)
                others = [users[name].z for name in names if name not in members]
                if others:
                    shares = framing_shares([key.z for key in keys], others, nodes)
                    row["framed"] += bool(named(Pooled(keys, shares)) - members)
                polynomial = interpolate([k.z for k in keys], [value_of(k) for k in keys])
                z = random_scalar(get_random_bytes)
                minted = UserKey(z, evaluate(polynomial, z))
                row["minted"] += opens(codebook, minted)
                stated = owner.trace_key(minted).evidence["on the owner's polynomial"]
                row["on the polynomial"] += stated == "yes"
            found[f"{m} users"] = {"coalitions": coalitions, **row}
    return found


# --- claims ------------------------------------------------------------------------------

MakeInputs = Callable[[np.ndarray], np.ndarray]
"""Wanted classes `[n]` → inputs `[n, …]`."""


def fitted(model: keras.Model, start: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Inputs in 0 … 1 to which a classifier gives the wanted classes, by gradient descent."""
    inputs = tf.Variable(start)
    optimizer = keras.optimizers.Adam(0.02)

    @tf.function
    def step() -> None:
        with tf.GradientTape() as tape:
            found = model(inputs, training=False)
            loss = tf.reduce_sum(keras.losses.sparse_categorical_crossentropy(wanted, found))
        optimizer.apply([tape.gradient(loss, inputs)], [inputs])
        inputs.assign(tf.clip_by_value(inputs, 0, 1))

    for _ in range(FITTING_STEPS):
        step()
    return np.asarray(inputs.numpy())


def makers(models: dict[str, keras.Model], data: Data, seed: int) -> dict[str, MakeInputs]:
    """`"natural"` takes samples of the wanted class, and needs no model."""
    random = np.random.default_rng(seed)
    x, y = data.x_other, data.y_other

    def noise(wanted: np.ndarray) -> np.ndarray:
        return random.random((len(wanted), *x.shape[1:]), np.float32)

    return {
        "random": noise,
        "natural": lambda wanted: x[[random.choice(np.flatnonzero(y == k)) for k in wanted]],
        **{
            f"fitted to {name}": lambda wanted, model=model: fitted(model, noise(wanted), wanted)
            for name, model in models.items()
        },
    }


def asked(owner: ke.Authority, model: Any, service: keras.Model) -> TraceReport:
    return owner.trace_service(lambda batch: predict(service, batch), model=model, batch_size=256)


def facts(report: TraceReport) -> dict[str, Any]:
    return {
        "verdict": report.verdict,
        "accused": [s.subject for s in report.guilty],
        "coincidences": report.suspects[0].score,
        "p_value": report.p_value,
        "ownership": report.evidence["ordinary answers right"],
        "this is the model": report.evidence["this is the model"],
    }


def claim(
    forger: ke.Authority,
    key: UserKey,
    make: MakeInputs,
    services: dict[str, keras.Model],
    owner: ke.Authority,
    folder: Path,
) -> dict[str, dict[str, Any]]:
    """What a forger proves against the user who holds `key`, and runs none of the services.

    Args:
        services: what is really asked, by name.
        owner: whose signature a judge knows, and who released a model before.
        folder: for folders of evidence.

    Returns:
        For each service the trace; what comes of evidence before the trace inputs are
        committed to, and after; and, if it is believed, whether also of who expects the
        owner's signature, and whether it is dated before the owner's release.
    """
    name = f"claim {len(forger.models())}"
    codebook, _, _ = traced_release(forger, name, key, make)
    early = {}
    for each, service in services.items():
        report, path = asked(forger, name, service), folder / f"{name}, {each}, early"
        early[each] = outcome(lambda r=report, p=path: forger.evidence(r, p))
    commit(forger, codebook)
    released = next(e.at for e in owner.events() if e.kind == MODEL_EXPORTED)
    rows = {}
    for each, service in services.items():
        report, path = asked(forger, name, service), folder / f"{name}, {each}"
        row = {**facts(report), "not committed": early[each]}
        row["committed"] = outcome(lambda r=report, p=path: forger.evidence(r, p))
        if row["committed"] == ACCEPTED:
            row["the owner's signature expected"] = outcome(
                lambda p=path: verify_evidence(p, issuer=owner.issuer)
            )
            row["dated before the release"] = verify_evidence(path).committed < released
        rows[each] = row
    return rows


def claims(made: World, twin: keras.Model, seed: int) -> dict[str, dict[str, Any]]:
    """`"{who}, {which} inputs"` → service → what came out; honest trace inputs first."""
    services = {"our model": decoded_classifier(made.copy, made.table), "the twin": twin}
    found: dict[str, dict[str, Any]] = {
        "honest trace inputs": {
            each: facts(asked(made.authority, made.model, service))
            for each, service in services.items()
        }
    }
    with authority() as (other, folder):
        other.enroll(f"user {i}" for i in range(USERS))
        for who, forger in {"another authority": other, "the owner": made.authority}.items():
            place = folder / who
            place.mkdir()
            key = issued(forger, SCAPEGOAT, place)
            for kind, make in makers(services, made.data, seed).items():
                rows = claim(forger, key, make, services, made.authority, place)
                found[f"{who}, {kind} inputs"] = rows
    return found


# --- evidence ----------------------------------------------------------------------------

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
        path.write_bytes(sign_statement(statement, signer.sign))
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


def renamed(old: Codebook, new: Codebook) -> Callable[[Statement], Statement]:
    """The statement speaks of another codebook throughout."""
    names = {old.codebook_id.hex(): new.codebook_id.hex()}

    def change(statement: Statement) -> Statement:
        replace = msgspec.structs.replace
        accused = [replace(a, codebook=names[a.codebook]) for a in statement.accused]
        blocks = [replace(b, codebook=names[b.codebook]) for b in statement.tracing_blocks]
        return replace(statement, accused=accused, tracing_blocks=blocks)

    return change


def changed_evidence() -> dict[str, Any]:
    """What `verify_evidence` says to honest evidence of a service, and to forgeries of it.

    The service answers all trace inputs as its user's key does. The trace set or the codebook
    is then replaced by one that was never released, by four forgers: who writes files only;
    who also adapts the statement; another authority, which signs and names itself; and the
    owner, who signs.
    """
    random = np.random.default_rng()
    with authority() as (owner, folder), authority() as (other, _):
        key = issued(owner, "user", folder)
        codebook, wanted, traces = traced_release(
            owner, "digits", key, lambda wanted: random.random((len(wanted), 8, 8, 1))
        )
        commit(owner, codebook)
        answers = {x.tobytes(): int(k) for x, k in zip(traces.inputs, wanted, strict=True)}
        report = owner.trace_service(
            lambda batch: [answers[x.tobytes()] for x in batch], model="digits"
        )
        honest = folder / "honest"
        owner.evidence(report, honest)
        others = TraceSet(random.random(traces.inputs.shape, np.float32), traces.labels)
        fresh = owner.current_codebook(codebook.codebook_id, fresh=True)
        name, new = (f"codebook-{c.codebook_id.hex()}.json" for c in (codebook, fresh))
        set_name = next(path.name for path in honest.glob("trace-set-*"))
        cases: dict[str, tuple[Files, Callable[[Statement], Statement]]] = {
            "trace set": ({set_name: others.secret_bytes()}, lambda statement: statement),
            "codebook": ({name: None, new: fresh.to_bytes()}, renamed(codebook, fresh)),
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
                return msgspec.structs.replace(change(s), issuer=issuer)

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


# --- all ---------------------------------------------------------------------------------


def run(size: Size, seed: int, cells: Cells) -> None:
    """The cells of one seed; trains only for the claims, if they are missing."""
    name = f"seed {seed}"
    cells.get(f"{name}: random keys", lambda: random_keys(KEYS))
    for t in THRESHOLDS:
        key = f"{name}: pooled keys, t = {t}"
        cells.get(key, lambda t=t: pooled_keys(t, COALITIONS, seed))
    cells.get(f"{name}: evidence", changed_evidence)

    def measured_claims() -> dict[str, Any]:
        data = load(size.data, size.samples, size.others)
        with world(size, seed, data, USERS) as made:
            twin = made.classifier
            train(twin, data.x, data.y, size.second, augments(data))
            return claims(made, twin, seed)

    cells.get(f"{name}: claims", measured_claims)
