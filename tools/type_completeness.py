"""How much of the public API has a known type, by ``pyright --verifytypes``; fails below 98 %.

Run by ``nox -s pyright``, with pyright and the libraries installed beside the interpreter.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any, Final

SCORE_MIN: Final = 0.98
SHOWN_MAX: Final = 40
PACKAGE: Final = "skate"


def verify(package: str) -> dict[str, Any]:
    """What pyright reports. Raises ``RuntimeError`` when it reports nothing."""
    command = ["pyright", "--verifytypes", package, "--ignoreexternal", "--outputjson"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        report: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        raise RuntimeError(f"pyright reported nothing: {done.stdout}{done.stderr}") from None
    return report


def problems(report: dict[str, Any]) -> list[str]:
    """A line for each thing whose type is not known, in the order of pyright."""
    found: dict[str, None] = {}
    for symbol in report["typeCompleteness"]["symbols"]:
        for one in symbol.get("diagnostics", []):
            at = one.get("range", {}).get("start", {}).get("line", -1) + 1
            found[f"{one.get('file', '')}:{at}: {one['message'].splitlines()[0]}"] = None
    return list(found)


def main() -> int:
    """Print the score; 1 when it is too low."""
    report = verify(PACKAGE)
    score: float = report["typeCompleteness"]["completenessScore"]
    counts = report["typeCompleteness"]["exportedSymbolCounts"]
    print(f"{PACKAGE}: {counts['withKnownType']} exported names with known types, {score:.1%}")
    if score >= SCORE_MIN:
        return 0
    print("\n".join(problems(report)[:SHOWN_MAX]))
    print(f"broken: {score:.1%} is less than {SCORE_MIN:.0%}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
