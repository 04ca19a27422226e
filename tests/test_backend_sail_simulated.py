"""The SAIL backends on the fake ``sophon.sail``, in a process of its own.

The simulator's chip that the fake opens stays until its process ends, and six threads of it keep a core busy: in the
process of all other tests it would slow them for the rest of the run.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SUITE = Path(__file__).with_name("sail_suite.py")


@pytest.mark.toolchain
@pytest.mark.slow
@pytest.mark.usefixtures("installed_toolchain")
def test_conforms() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "-p", "no:xdist", "--no-header"]
    done = subprocess.run([*command, str(SUITE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = re.search(r"(\d+) passed(?:, (\d+) skipped)?", done.stdout)
    assert counts is not None, done.stdout
    assert int(counts[1]) > 140
    # Nets of kinds that the suite's bundle does not have, for each of its two backends.
    assert int(counts[2] or 0) <= 4, done.stdout
