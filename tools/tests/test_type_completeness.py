from __future__ import annotations

from typing import Any

import pytest

from tools import type_completeness


def report(score: float) -> dict[str, Any]:
    unknown = {
        "message": "Type is missing\nInferred type is X",
        "file": "a.py",
        "range": {"start": {"line": 6}},
    }
    symbols = [{"diagnostics": [unknown]}, {"diagnostics": [unknown]}, {"name": "fine"}]
    return {
        "typeCompleteness": {
            "completenessScore": score,
            "exportedSymbolCounts": {"withKnownType": 9},
            "symbols": symbols,
        }
    }


@pytest.mark.parametrize(("score", "status"), [(0.98, 0), (1.0, 0), (0.979, 1)])
def test_score_decides(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    score: float,
    status: int,
) -> None:
    monkeypatch.setattr(type_completeness, "verify", lambda _: report(score))
    assert type_completeness.main() == status
    assert ("a.py:7: Type is missing" in capsys.readouterr().out) == bool(status)


def test_each_problem_is_told_once() -> None:
    assert type_completeness.problems(report(1.0)) == ["a.py:7: Type is missing"]
