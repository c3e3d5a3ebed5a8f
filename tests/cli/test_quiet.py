"""TensorFlow's log lines are kept off, and nothing else is."""

import os
import subprocess
import sys

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
