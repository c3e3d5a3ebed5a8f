"""The `encryip` command, through its real entry point."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keras_encryip.authority import Authority
from keras_encryip.labels.assignment import LabelAssignment
from keras_encryip.labels.codebook import ModelMetadata

NAMES = ["cat", "dog", "eel"]
SECRETS = {"ENCRYIP_AUTHORITY_PASSPHRASE": "owner", "ENCRYIP_BUNDLE_PASSPHRASE": "user"}


def encryip(
    *arguments: str | Path, stdin: str = "", secrets: dict[str, str] = SECRETS
) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ENCRYIP_")}
    return subprocess.run(
        [sys.executable, "-c", "from keras_encryip.cli import main; main()", *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=300,
        env={**environment, **secrets, "COLUMNS": "200"},
    )


def ok(finished: subprocess.CompletedProcess[str]) -> str:
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority with alice and bob (revoked), a codebook, and outputs of 3 inputs."""
    folder = tmp_path_factory.mktemp("cli")
    options = ("--threshold", "2", "--slots", "256")
    ok(encryip("authority", "create", folder / "a.authority", *options))
    for user in ("alice", "bob"):
        out = folder / f"{user}.keybundle"
        assert "Wrote" in ok(encryip("key", "issue", folder / "a.authority", user, "--out", out))
    ok(encryip("key", "revoke", folder / "a.authority", "bob"))
    assignment = LabelAssignment.draw(3, 4, 0, 256)
    with Authority.open(f"sqlite:///{folder}/a.authority", "owner") as authority:
        metadata = ModelMetadata(model="pets", class_names=NAMES)
        codebook = authority.model_store.add_model(metadata, assignment)
    (folder / "codebook.json").write_bytes(codebook.to_bytes())
    confused = np.zeros((3, 12), np.float32)
    confused[[0, 1, 2], assignment.labels[[2, 0, 1], [0, 3, 1]]] = 0.75
    confused[[0, 1, 2], assignment.labels[[0, 1, 2], 2]] += 0.25
    np.save(folder / "confused.npy", confused)
    np.savetxt(folder / "confused.csv", confused, delimiter=",")
    ciphertexts = [codebook.ciphertext(int(j)) for j in confused.argmax(-1)]
    (folder / "response.json").write_text(json.dumps({"predictions": confused.tolist()}))
    (folder / "named.json").write_text(json.dumps({"outputs": {"confused": confused.tolist()}}))
    rows = [{"b64": base64.b64encode(c).decode()} for c in ciphertexts]
    (folder / "encrypted.json").write_text(json.dumps({"predictions": rows}))
    return folder


@pytest.mark.parametrize("name", ["confused.npy", "confused.csv"])
def test_decode_file(workplace: Path, name: str) -> None:
    command = ("decode", workplace / "codebook.json", workplace / "alice.keybundle")
    assert ok(encryip(*command, workplace / name)).split() == ["eel", "cat", "dog"]


def test_decode_what_few_bits_leave(workplace: Path) -> None:
    """Sums of 0.9: refused, with the way out, and read by who knows; a CSV's header is not."""
    command = ("decode", workplace / "codebook.json", workplace / "alice.keybundle")
    rounded, headed = workplace / "rounded.csv", workplace / "headed.csv"
    rows = np.load(workplace / "confused.npy")
    np.savetxt(rounded, rows * 0.9, delimiter=",")
    headed.write_text(",".join(map(str, range(12))) + "\n" + ",".join(map(str, rows[0])) + "\n")
    for path in (rounded, headed):
        refused = encryip(*command, path)
        assert refused.returncode == 1
        assert "`quantised=True`" in refused.stderr
        assert refused.stdout == ""
    assert ok(encryip(*command, rounded, "--quantised")).split() == ["eel", "cat", "dog"]
    found = ok(encryip(*command, rounded, "--quantised", "--what", "probabilities"))
    assert found.splitlines()[0] == "0.225,0,0.675"


@pytest.mark.parametrize("name", ["response.json", "named.json", "encrypted.json"])
def test_decode_serving_json_on_stdin(workplace: Path, name: str) -> None:
    command = ("decode", workplace / "codebook.json", workplace / "alice.keybundle")
    finished = encryip(*command, "--what", "labels", stdin=(workplace / name).read_text())
    assert ok(finished).split() == ["2", "0", "1"]


def test_decode_probabilities(workplace: Path) -> None:
    command = ("decode", workplace / "codebook.json", workplace / "alice.keybundle")
    finished = encryip(*command, workplace / "confused.npy", "--what", "probabilities")
    assert ok(finished).splitlines() == ["0.25,0,0.75", "0.75,0.25,0", "0,0.75,0.25"]


@pytest.mark.parametrize(
    ("arguments", "stdin", "secrets", "message"),
    [
        (("bob.keybundle", "confused.npy"), "", SECRETS, "Key .* was revoked"),
        (("alice.keybundle", "missing.npy"), "", SECRETS, r"missing\.npy'?: No such file"),
        (("alice.keybundle", "alice.keybundle"), "", SECRETS, r"must end in \.npy or \.csv"),
        (("none.keybundle", "confused.npy"), "", SECRETS, r"Cannot read the key bundle .*none"),
        (
            ("alice.keybundle", "confused.npy"),
            "",
            {"ENCRYIP_BUNDLE_PASSPHRASE": "wrong"},
            "passphrase does not open",
        ),
        (("alice.keybundle",), "not json", SECRETS, "not a JSON object"),
        (("alice.keybundle",), '{"error": "no such model"}', SECRETS, "no such model"),
        (("alice.keybundle",), '{"predictions": [[1, 2]]}', SECRETS, "last axis of 12"),
    ],
    ids=["revoked", "missing", "ending", "bundle", "passphrase", "json", "server", "shape"],
)
def test_decode_refuses(
    workplace: Path, arguments: tuple[str, ...], stdin: str, secrets: dict[str, str], message: str
) -> None:
    paths = [workplace / name for name in arguments]
    finished = encryip("decode", workplace / "codebook.json", *paths, stdin=stdin, secrets=secrets)
    assert finished.returncode == 1
    assert finished.stdout == ""
    assert finished.stderr.startswith("Error: ")
    assert "Traceback" not in finished.stderr
    assert re.search(message, finished.stderr), finished.stderr


def test_decode_loads_no_tensorflow(workplace: Path) -> None:
    code = (
        "import sys; from keras_encryip.cli.app import app\n"
        "try: app()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "assert not {'tensorflow', 'keras', 'sqlalchemy', 'sklearn'} & set(sys.modules)"
    )
    command = ["decode", "codebook.json", "alice.keybundle", "confused.npy"]
    finished = subprocess.run(
        [sys.executable, "-c", code, *command],
        cwd=workplace,
        capture_output=True,
        text=True,
        env={**os.environ, **SECRETS},
    )
    assert ok(finished).split() == ["eel", "cat", "dog"]


def test_authority_info_and_key_list(workplace: Path) -> None:
    info = ok(encryip("authority", "info", workplace / "a.authority"))
    assert "2, 1 of at most 2 revoked" in info
    assert "slots            256" in info
    assert "key revoked" in info
    users = ok(encryip("key", "list", workplace / "a.authority"))
    (line,) = (line for line in users.splitlines() if "alice" in line)
    assert line.split()[1] == "alice"
    assert "read, run" in line
    assert "revoked" in users


def test_a_log_that_was_cut_or_changed_is_noticed(workplace: Path, tmp_path: Path) -> None:
    """By what an earlier `info` printed, kept elsewhere: a file alone cannot show it."""
    (tmp_path / "old.authority").write_bytes((workplace / "a.authority").read_bytes())
    old = log_of(ok(encryip("authority", "info", tmp_path / "old.authority")))
    assert re.fullmatch(r"[1-9]\d*:[0-9a-f]{64}", old)
    shutil.copy(tmp_path / "old.authority", tmp_path / "new.authority")
    ok(encryip("key", "revoke", tmp_path / "new.authority", "alice"))
    ok(encryip("authority", "info", tmp_path / "new.authority", "--expect-log", old))
    new = log_of(ok(encryip("authority", "info", tmp_path / "new.authority")))
    assert int(new.split(":")[0]) == int(old.split(":")[0]) + 1
    number, digest = old.split(":")
    for file, expected, message in (
        ("old.authority", new, f"ends before event {new.split(':')[0]}: it was cut, or"),
        ("new.authority", f"{number}:{digest[::-1]}", f"has another event {number} than was exp"),
        ("new.authority", "the newest", "`expect_log` must be the number of an event and its d"),
    ):
        finished = encryip("authority", "info", tmp_path / file, "--expect-log", expected)
        assert finished.returncode == 1
        assert finished.stdout == ""
        assert finished.stderr.startswith("Error: ")
        assert message in finished.stderr


def log_of(info: str) -> str:
    (line,) = (line for line in info.splitlines() if line.startswith("log "))
    return line.split()[1]


def test_key_inspect_and_inspect_show_public_facts_only(workplace: Path) -> None:
    # No passphrase is given: nothing secret could be shown.
    shown = ok(encryip("key", "inspect", workplace / "alice.keybundle", secrets={}))
    assert "subject          alice" in shown
    assert "roles            read, run" in shown
    codebook = ok(encryip("inspect", workplace / "codebook.json", secrets={}))
    assert "confused labels  12" in codebook
    assert "slots" not in codebook  # they are masked
    assert "pets" not in codebook


def as_json(*arguments: str | Path, secrets: dict[str, str] = SECRETS) -> Any:
    """The one document, whose keys are snake_case at every depth."""
    printed = ok(encryip(*arguments, "--json", secrets=secrets))
    assert printed.isascii()

    def check(value: Any) -> None:
        for item in value.values() if isinstance(value, dict) else value:
            if isinstance(item, dict | list):
                check(item)
        keys = value if isinstance(value, dict) else ()
        assert all(re.fullmatch(r"[a-z][a-z0-9_]*", key) for key in keys), keys

    document = json.loads(printed)
    check(document)
    return document


def test_facts_as_json(workplace: Path) -> None:
    info = as_json("authority", "info", workplace / "a.authority")
    assert (info["users"], info["revoked"], info["threshold"], info["slots"]) == (2, 1, 2, 256)
    assert info["models"] == ["pets"]
    assert [event["number"] for event in info["events"]] == list(range(1, len(info["events"]) + 1))
    assert info["log"].startswith(f"{len(info['events'])}:")
    users = as_json("key", "list", workplace / "a.authority")["users"]
    assert [(u["subject"], u["status"], u["roles"], u["scope"]) for u in users] == [
        ("alice", "active", ["read", "run"], ["*"]),
        ("bob", "revoked", ["read", "run"], ["*"]),
    ]
    bundle = as_json("key", "inspect", workplace / "alice.keybundle", secrets={})
    assert (bundle["subject"], bundle["key_id"]) == ("alice", users[0]["key_id"])
    assert (bundle["issuer"], bundle["made_to"]) == (info["issuer"], None)
    codebook = as_json("inspect", workplace / "codebook.json", secrets={})
    assert codebook["issuer"] == info["issuer"]
    assert (codebook["classes"], codebook["confused_labels"], codebook["locked"]) == (3, 12, False)
    assert codebook["key_file"] is None


@pytest.mark.parametrize(
    ("what", "values"),
    [
        ("names", ["eel", "cat", "dog"]),
        ("labels", [2, 0, 1]),
        ("probabilities", [[0.25, 0, 0.75], [0.75, 0.25, 0], [0, 0.75, 0.25]]),
    ],
)
def test_decoded_as_json(workplace: Path, what: str, values: list[Any]) -> None:
    paths = (workplace / name for name in ("codebook.json", "alice.keybundle", "confused.npy"))
    assert as_json("decode", *paths, "--what", what) == {
        "model": "pets",
        "class_names": NAMES,
        what: values,
    }


def test_an_error_is_no_json(workplace: Path) -> None:
    failed = encryip("inspect", workplace / "confused.npy", "--json")
    assert failed.returncode == 1
    assert failed.stdout == ""
    assert failed.stderr.startswith("Error: ")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("authority", "create", "a.authority"), "never overwritten"),
        (
            ("authority", "create", "b.authority", "--slots", "100"),
            "`slots` must be a multiple of 8 in 256 … 4096. Received: slots=100",
        ),
        (("authority", "info", "none.authority"), "There is no authority"),
        (("key", "issue", "a.authority", "alice", "--out", "x.keybundle"), "has a key already"),
        (("key", "revoke", "a.authority", "nobody"), "There is no user 'nobody'"),
        (("verify", "."), "Cannot read the manifest"),
        (("inspect", "confused.npy"), "codebook is malformed"),
        (("export", "a.authority", "none.keras", "out"), "Cannot read the model"),
    ],
    ids=["create", "slots", "info", "issue", "revoke", "verify", "inspect", "export"],
)
def test_clear_failures(workplace: Path, command: tuple[str, ...], message: str) -> None:
    paths = [workplace / word if "." in word else word for word in command]
    finished = encryip(*paths)
    assert finished.returncode == 1
    assert message in finished.stderr
    assert "Traceback" not in finished.stderr
    assert not (workplace / "x.keybundle").exists()


def test_passphrase_from_file(workplace: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("owner\n")
    option = ("--authority-passphrase-file", tmp_path / "secret")
    assert "alice" in ok(encryip("key", "list", workplace / "a.authority", *option, secrets={}))


def test_seal_and_unseal(workplace: Path, tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "saved_model.pb").write_bytes(b"graph")
    options = ("--authority", workplace / "a.authority", "--model", "pets")
    sealed = tmp_path / "pets.sealed"
    assert "Sealed" in ok(encryip("seal", tmp_path / "1", sealed, *options))
    for user, code in (("alice", 0), ("bob", 1)):
        target = tmp_path / user
        finished = encryip("unseal", sealed, target, workplace / f"{user}.keybundle")
        assert finished.returncode == code
        assert target.exists() is (code == 0)
    assert (tmp_path / "alice" / "saved_model.pb").read_bytes() == b"graph"
    assert finished.stderr.startswith("Error: Key ")
    assert "was revoked before" in finished.stderr
    assert "is never overwritten" in encryip("seal", tmp_path / "1", sealed, *options).stderr


def test_wrong_usage_exits_with_2() -> None:
    assert encryip("decode").returncode == 2
    assert encryip("no-such-command").returncode == 2


def test_export_a_saved_model_and_verify(shipped: Any, tmp_path: Path) -> None:
    exported = encryip(
        "export",
        shipped.folder / "acme.authority",
        shipped.saved,
        tmp_path / "served" / "2",
        secrets={"ENCRYIP_AUTHORITY_PASSPHRASE": shipped.passphrase},
    )
    assert "Exported" in ok(exported)
    verified = ok(encryip("verify", tmp_path / "served" / "2"))
    assert "whole and unchanged" in verified
    facts = as_json("verify", tmp_path / "served" / "2")
    assert facts["issuer"] == shipped.authority.issuer.hex()
    assert facts["issuer_expected"] is False
    assert f"{facts['files']} files" in verified
    bundle = shipped.bundles["alice"]
    assert "your key bundle" in ok(encryip("verify", tmp_path / "served" / "2", "--bundle", bundle))
    (tmp_path / "served" / "2" / "extra").write_text("x")
    finished = encryip("verify", tmp_path / "served" / "2")
    assert finished.returncode == 1
    assert "'extra'" in finished.stderr


def test_owner_commands_without_their_extra_say_what_to_install(tmp_path: Path) -> None:
    code = "import sys; sys.modules['keras'] = None; from keras_encryip.cli import main; main()"
    finished = subprocess.run(
        [sys.executable, "-c", code, "demo", "--directory", str(tmp_path / "out")],
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 1
    assert 'pip install "keras_encryip[owner,plots]"' in finished.stderr
    assert "Traceback" not in finished.stderr
    assert not (tmp_path / "out").exists()
