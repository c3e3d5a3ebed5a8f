"""Passphrases in a keyring, with real backends of the package `keyring` in real processes."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

PASSPHRASE = "correct horse"
PLAINTEXT = "keyrings.alt.file.PlaintextKeyring"

# A backend that stores nothing says nothing, as `keyring.backends.null` does; a locked one
# raises, and its message holds the passphrase: ours must not.
LOCKED = """
from keyring.backend import KeyringBackend
from keyring.errors import KeyringLocked
class Locked(KeyringBackend):
    priority = 1
    def get_password(self, service, username):
        raise KeyringLocked(f"{service} {username} is locked")
    def set_password(self, service, username, password):
        raise KeyringLocked(f"cannot store {password}")
    def delete_password(self, service, username):
        raise KeyringLocked("locked")
"""


class Process:
    """Runs code with a keyring of its own."""

    def __init__(self, folder: Path, bundle: Path) -> None:
        self.folder, self.bundle = folder, bundle
        (folder / "locked_keyring.py").write_text(LOCKED)

    def __call__(self, code: str, backend: str = PLAINTEXT) -> subprocess.CompletedProcess[str]:
        start = f"""
            from keras_encryip.client import KeyBundle
            from keras_encryip.client.keyring import forget, passphrase_of, remember
            bundle = KeyBundle.read({str(self.bundle)!r})
        """
        path = os.pathsep.join((os.environ.get("PYTHONPATH", ""), str(self.folder)))
        return subprocess.run(
            [sys.executable, "-W", "error", "-c", textwrap.dedent(start) + code],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={
                **os.environ,
                "PYTHONPATH": path.strip(os.pathsep),
                "PYTHON_KEYRING_BACKEND": backend,
                "XDG_DATA_HOME": str(self.folder / "data"),
            },
        )

    def ok(self, code: str) -> str:
        finished = self(code)
        assert finished.returncode == 0, finished.stderr
        return finished.stdout

    def fails(self, code: str, message: str, backend: str = PLAINTEXT) -> None:
        finished = self(code, backend)
        assert finished.returncode == 1
        last = finished.stderr.splitlines()[-1]
        assert last.startswith("keras_encryip.errors.PassphraseError: ")
        assert message in last
        assert "During handling" not in finished.stderr
        assert "direct cause" not in finished.stderr
        assert "the secret words" not in finished.stderr


@pytest.fixture
def process(tmp_path: Path, alice_file: Path) -> Process:
    return Process(tmp_path, alice_file)


# The passphrase is put together, so that no quoted source line holds it.
SECRET = "' '.join(['the', 'secret', 'words'])"


def test_one_process_remembers_and_another_recalls(process: Process, world: Any) -> None:
    process.ok(f"remember(bundle, {PASSPHRASE!r})")
    assert process.ok("print(bundle.unlock(passphrase_of(bundle)).key_id)") == (
        f"{world.alice.key_id}\n"
    )
    (stored,) = (process.folder / "data").rglob("*.cfg")
    assert f"[encryip]\n{world.alice.key_id} = " in stored.read_text()
    process.ok("remember(bundle, 'ünïcode 🐟')")
    assert process.ok("print(ascii(passphrase_of(bundle)))") == ascii("ünïcode 🐟") + "\n"
    process.ok("forget(bundle)")
    nothing = f"The keyring holds no passphrase for '{world.alice.key_id}' (subject 'alice')"
    process.fails("passphrase_of(bundle)", nothing)
    process.fails("forget(bundle)", nothing)


def test_bundles_to_one_public_key_share_the_private_keys_passphrase(
    process: Process, world: Any, tmp_path: Path
) -> None:
    from keras_encryip.client import X25519PrivateKey

    own = X25519PrivateKey.generate().public_key
    paths = [tmp_path / "first.keybundle", tmp_path / "second.keybundle"]
    for path in paths:
        key = world.authority.master.issue()
        path.write_bytes(world.authority.bundle(key, passphrase=None, public_key=own))
    process.bundle = paths[0]
    process.ok(f"remember(bundle, {SECRET})")
    process.bundle = paths[1]
    assert process.ok("print(passphrase_of(bundle))") == "the secret words\n"
    assert (
        process.ok(
            f"import keyring; print(len(keyring.get_password('encryip', {own.fingerprint!r})))"
        )
        == "16\n"
    )


@pytest.mark.parametrize(
    ("backend", "problem"),
    [
        ("locked_keyring.Locked", "(KeyringLocked)"),
        ("keyring.backends.fail.Keyring", "(NoKeyringError)"),
        ("no_such_package.Keyring", "(ModuleNotFoundError)"),
        ("keyring.backends.NoSuchClass", "(AttributeError)"),
    ],
    ids=["locked", "none", "missing", "misspelt"],
)
def test_a_keyring_that_cannot_be_used_says_so(
    process: Process, backend: str, problem: str
) -> None:
    message = f"The keyring cannot be used {problem}. Give the passphrase by a prompt, a file or"
    for code in (f"remember(bundle, {SECRET})", "passphrase_of(bundle)", "forget(bundle)"):
        process.fails(code, message, backend)


def test_a_keyring_that_keeps_nothing_is_noticed(process: Process) -> None:
    message = "The keyring did not keep the passphrase. Give the passphrase by a prompt, a file"
    process.fails(f"remember(bundle, {SECRET})", message, "keyring.backends.null.Keyring")


def test_without_the_package_the_extra_is_named(process: Process) -> None:
    process.fails(
        "import sys; sys.modules['keyring'] = None; passphrase_of(bundle)",
        "The keyring cannot be used (pip install 'keras_encryip[keyring]'). Give the passphrase",
    )


def test_the_package_is_not_loaded_until_a_keyring_is_asked(process: Process) -> None:
    asked = "import sys; before = 'keyring' in sys.modules\n"
    asked += f"remember(bundle, {SECRET}); print(before, 'keyring' in sys.modules)"
    assert process.ok(asked) == "False True\n"
