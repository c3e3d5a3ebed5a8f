"""What is wrong with paths is said before a passphrase is asked for, and TensorFlow loaded."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import keras_encryip as ke
from keras_encryip.errors import ArgumentError
from keras_encryip.formats.atomic_files import make_new_folder

BLOCKED = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("tensorflow", "keras"):
            raise AssertionError(f"{name} is imported")
sys.meta_path.insert(0, Blocker())
from keras_encryip.cli import main
main()
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("early")
    ke.Authority.create(folder / "a.authority", "owner", scrypt_log2_n=14).close()
    (folder / "m.keras").write_bytes(b"")
    (folder / "there").mkdir()
    (folder / "there" / "r.json").write_bytes(b"")
    return folder


def run(
    code: str, place: Path, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("ENCRYIP_")}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=place,
        env={**kept, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        start_new_session=True,
    )


AT_ONCE = [
    ("export a.authority none.keras new", "Cannot read the model 'none.keras'"),
    ("export a.authority m.keras there", "'there' exists already"),
    ("rotate none new --authority a.authority", "Cannot read the codebook 'none'"),
    ("rotate there there --authority a.authority", "'there' exists already"),
    ("seal none new --authority a.authority --model m", "Cannot read the folder 'none'"),
    ("seal there m.keras --authority a.authority --model m", "'m.keras' exists already"),
    ("trace weights a.authority none --model m", "Cannot read the suspect's weights 'none'"),
    ("trace weights a.authority there --model m --reference x", "Cannot read the reference 'x'"),
    ("trace weights a.authority there --model m --evidence there", "'there' exists already"),
    ("trace weights a.authority there --model m --save r.txt", "must end in .json or .png"),
    ("trace service a.authority http://x --model m --save there/r.json", "exists already"),
    ("trace key a.authority none", "Cannot read the key 'none'"),
    ("trace key a.authority m.keras --save none/r.json", "there is no such folder"),
    ("trace key a.authority m.keras --save r.json --save r.json", "is named twice"),
    (f"trace key a.authority {'x' * 300}", "File name too long"),
    (f"inspect {'x' * 300}", "File name too long"),
    (f"rotate {'x' * 300} new --authority a.authority", "File name too long"),
    ("serve none", "Cannot read the folder 'none'"),
    ("serve there", "There is no SavedModel in 'there'"),
]


@pytest.mark.parametrize(
    ("command", "message"), AT_ONCE, ids=[command[:60] for command, _ in AT_ONCE]
)
def test_paths_first(place: Path, command: str, message: str) -> None:
    """No passphrase is given, and there is nobody to ask."""
    done = run(BLOCKED, place, *command.split())
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ")
    assert message in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        "export none.authority m.keras new",
        "seal there new --authority none.authority --model m",
        "trace weights none.authority there --model m",
    ],
)
def test_the_authority_next(place: Path, command: str) -> None:
    done = run(BLOCKED, place, *command.split(), ENCRYIP_AUTHORITY_PASSPHRASE="owner")
    assert done.returncode == 1
    assert "There is no authority" in done.stderr


def test_the_blocker_blocks(place: Path) -> None:
    secret = {"ENCRYIP_AUTHORITY_PASSPHRASE": "owner"}
    done = run(BLOCKED, place, "export", "a.authority", "m.keras", "new", **secret)
    assert "AssertionError: keras is imported" in done.stderr


# --- what is not installed ------------------------------------------------------------------------

WITHOUT = """
import sys
sys.modules[{package!r}] = None
import keras_encryip as ke
try:
    {use}
except ImportError as error:
    assert isinstance(error, ke.EncryipError)
    print(error)
"""
PICTURE = (
    "from keras_encryip.tracing.report import Findings, TraceReport; TraceReport(Findings.now("
    "evidence={}, kind='key', model='', score_name='', scores=[], suspects=[], tested=0, tests=0,"
    "threshold=None)).save('report.png')"
)


@pytest.mark.parametrize(
    ("package", "use", "extra"),
    [
        ("tensorflow", "ke.protect", "owner"),
        ("keras", "ke.export_saved_model", "owner"),
        ("sqlalchemy", "ke.Authority", "owner"),
        ("scipy", "ke.Tracer", "owner"),
        ("matplotlib", PICTURE, "plots"),
    ],
    ids=["tensorflow", "keras", "sqlalchemy", "scipy", "matplotlib"],
)
def test_the_extra_is_named(tmp_path: Path, package: str, use: str, extra: str) -> None:
    done = run(WITHOUT.format(package=package, use=use), tmp_path)
    assert done.stdout == (
        f"The package {package!r} is not installed. "
        f'Install it with: pip install "keras_encryip[{extra}]"\n'
    ), done.stderr


def test_the_command_says_the_same(place: Path) -> None:
    code = (
        "import sys; sys.modules['sqlalchemy'] = None\nfrom keras_encryip.cli import main; main()"
    )
    secret = {"ENCRYIP_AUTHORITY_PASSPHRASE": "owner"}
    done = run(code, place, "key", "list", "a.authority", **secret)
    assert done.returncode == 1
    assert done.stderr == (
        "Error: The package 'sqlalchemy' is not installed. "
        'Install it with: pip install "keras_encryip[owner]"\n'
    )


def test_a_fault_of_ours_stays_one(tmp_path: Path) -> None:
    code = WITHOUT.format(package="keras_encryip.authority.keys", use="ke.Authority")
    assert "AssertionError" in run(code, tmp_path).stderr


def test_a_link_to_nowhere_is_taken(place: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")

    def never(_: Path) -> None:
        raise AssertionError

    with pytest.raises(ArgumentError, match="exists already"):
        make_new_folder(tmp_path / "link", never)
