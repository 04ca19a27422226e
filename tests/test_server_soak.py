"""``scripts/soak_server.py``: a short run finds nothing wrong, and a long one would find what is."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cli_support import environment

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script's own modules."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import soak.answers
    import soak.client
    import soak.figures
    import soak.metrics
    import soak.phases
    import soak.program
    import soak.report
    import soak.requests

    return soak


def test_a_short_soak(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPTS / "soak_server.py"), "--requests", "60"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=600, env=environment(tmp_path / "home")
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "problems: 0" in done.stdout
    load = re.search(r"^load: (\d+) requests.*failures: 0", done.stdout, re.M)
    assert load is not None
    assert int(load[1]) == 51
    index = re.search(r"Jain's index of answers: ([\d.]+)", done.stdout)
    assert index is not None
    assert float(index[1]) > 0.9
    assert re.search(r"^SIGTERM: ended after [\d.]+ s with exit code 0", done.stdout, re.M)
    assert re.search(r"^clients that left: 5; .* tokens", done.stdout, re.M)


def test_jains_index(parts: Any) -> None:
    assert parts.figures.jain([3, 3, 3]) == 1
    assert parts.figures.jain([1, 0, 0, 0]) == 0.25
    assert parts.figures.quantile([4, 1, 3, 2], 0.5) == 2


def result(parts: Any, **changes: Any) -> Any:
    request = parts.requests.Request("chat", body={}, same="x")
    return parts.client.Result(**{"request": request, "client": "one", "began": 0.0, "outcome": "200", **changes})


def test_what_is_wrong_makes_the_exit_code(parts: Any, capsys: pytest.CaptureFixture[str]) -> None:
    Load, Held, Freed = parts.phases.Load, parts.program.Held, parts.phases.Freed  # noqa: N806
    good = parts.report.Report()
    good.results("load", Load([result(parts)], 1.0), in_detail=True)
    good.freed([Freed(3, 0.1)])
    start = Held(1, 1, 10, 5)
    good.held([start, start, Held(9_000_000, 90_000_000, 11, 6, kept=85_000_000)], 2000, judged=True)
    assert good.finish() == 0
    for spoil in (
        lambda report: report.results("load", Load([result(parts, problem="another answer")])),
        lambda report: report.freed([Freed(500, 0.1)]),
        lambda report: report.freed([Freed(1, 0.1, "the worker is still busy")]),
        lambda report: report.held([start, start, Held(1, 90_000_000, 10, 5)], 2000, judged=True),
        lambda report: report.held([start, start, Held(1, 1, 40, 5)], 2000, judged=True),
        lambda report: report.stopped(parts.phases.Stopped(18.0, None, []), 18.0),
        lambda report: report.stopped(parts.phases.Stopped(1.0, 1, []), 18.0),
        lambda report: report.log("Traceback (most recent call last):\n  File\nValueError: x\n"),
        lambda report: report.fairness(Load([result(parts)] * 9), {"one": 1, "two": 1}, judged=True),
    ):
        report = parts.report.Report()
        spoil(report)
        assert report.finish() == 1
    assert "problems: 1" in capsys.readouterr().out


def test_an_answer_is_held_against_the_first_of_its_kind(parts: Any) -> None:
    client = parts.client.Client("one", "http://nowhere", "", {})
    for text, wrong in (("a", False), ("a", False), ("b", True)):
        found = result(parts)
        client._judge_answer(found, parts.answers.Said(text, finish="stop", ended=True))
        assert bool(found.problem) == wrong
    cut = result(parts)
    client._judge_answer(cut, parts.answers.Said("a"))
    assert cut.problem == "the stream has no end"
