"""TensorFlow's log lines are kept off, and nothing else is."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

LOG = "E0000 00:00:1795875612.988218    8182 cuda_platform.cc:52] failed call to cuInit"
FATAL = "F0000 00:00:1795875612.988218    8182 cpu_feature_guard.cc:52] compiled to use AVX"
CODE = """
import os
from keras_encryip.cli.quiet import quiet_tensorflow
with quiet_tensorflow():
    os.write(2, b"{log}\\nWARNING: All log messages before absl::InitializeLog() is called\\n")
    os.write(2, b"{fatal}\\n")
    {then}
os.write(2, b"{log}\\n")
"""


@pytest.mark.parametrize(
    ("then", "code", "last"),
    [
        ("pass", 0, LOG),  # outside, all is shown
        ("raise ImportError('no library')", 1, "ImportError: no library"),
        ("os.abort()", -6, FATAL),
    ],
)
def test_quiet(then: str, code: int, last: str) -> None:
    program = CODE.format(log=LOG, fatal=FATAL, then=then)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == code
    lines = done.stderr.splitlines()
    assert lines[0] == FATAL
    assert lines[-1] == last
    assert lines.count(LOG) == (code == 0)


def test_what_the_environment_says_already_stays() -> None:
    code = "import os; from keras_encryip.cli.quiet import quiet_tensorflow as q\nwith q(): pass\n"
    code += "print(os.environ['TF_CPP_MIN_LOG_LEVEL'], os.environ['CUDA_VISIBLE_DEVICES'])"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("TF_", "CUDA_"))}
    for extra, said in (({}, "3 -1"), ({"TF_CPP_MIN_LOG_LEVEL": "0"}, "0 -1")):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=environment | extra
        )
        assert done.stdout.split() == said.split()


def test_no_module_of_the_folder_is_run(tmp_path: Path) -> None:
    """`encryip` runs in any folder, and imports nothing from it."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules.pop('re', None)\n")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "re.py").write_text("open('imported', 'w')\n")
    code = "from keras_encryip.cli.quiet import quiet_tensorflow as q\nwith q(): pass\n"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path / "here",
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])},
    )
    assert done.returncode == 0
    assert not (tmp_path / "here" / "imported").exists()


def test_without_a_standard_error() -> None:
    code = "from keras_encryip.cli.quiet import quiet_tensorflow as q\nwith q(): print('inside')\n"
    command = ["sh", "-c", 'exec "$0" -c "$1" 2>&-', sys.executable, code]
    assert subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout == b"inside\n"
