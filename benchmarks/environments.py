"""An environment for each peer under `benchmarks/.venvs`, made once and kept until its pins change.

Each peer has a file of pins in `requirements/`; Skate's libraries are installed from the checkout,
editable, so that its environment follows the source. uv makes them where there is one, pip
elsewhere. Every peer's modules are compiled to bytecode, as pip leaves them for its users, also
where the machine's settings forbid Python to write it: starts are measured, not the compiler.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
VENVS = HERE / ".venvs"
REQUIREMENTS = HERE / "requirements"
STAMP = "benchmarks-stamp"
SHARED_REQUIREMENTS = {"executor": "pool", "memcpy": "pool", "pickling": "pool"}
OUTPUT_LINES = 30


class InstallationError(Exception):
    """An environment could not be made; the text has the installer's last lines."""


def ensure_environment(peer: str, python: str = sys.executable) -> str:
    """The interpreter of the peer's environment, made or made anew when anything in it changed.

    `python`: the interpreter on which the environment is based. Raises InstallationError.
    """
    name = SHARED_REQUIREMENTS.get(peer, peer)
    folder = VENVS / name
    interpreter = folder / "bin" / "python"
    arguments = install_arguments(name)
    stamp = _stamp(name, python, arguments)
    stamp_file = folder / STAMP
    if stamp_file.exists() and stamp_file.read_text() == stamp and interpreter.exists():
        _compile_sources(name, interpreter)
        return str(interpreter)
    shutil.rmtree(folder, ignore_errors=True)
    VENVS.mkdir(exist_ok=True)
    uv = find_uv()
    if uv:
        _run([uv, "venv", "--quiet", "--python", python, str(folder)])
        install = [uv, "pip", "install", "--quiet", "--compile-bytecode"]
        _run([*install, "--python", str(interpreter), *arguments])
    else:
        _run([python, "-m", "venv", str(folder)])
        _run([str(interpreter), "-m", "pip", "install", "--quiet", *arguments])
    _compile_sources(name, interpreter)
    # Last, so that an interrupted installation is not taken for a good one.
    stamp_file.write_text(stamp)
    return str(interpreter)


def install_arguments(name: str) -> list[str]:
    """What the installer is told for a peer: its pins, and for Skate its libraries."""
    arguments = ["-r", str(REQUIREMENTS / f"{name}.txt")]
    if name == "skate":
        constraints = ROOT / "constraints.txt"
        arguments += ["-c", str(constraints)]
        for project in sorted([*ROOT.glob("libs/*/pyproject.toml")]):
            arguments += ["-e", str(project.parent)]
    return arguments


def _compile_sources(name: str, interpreter: Path) -> None:
    # Installers compile what they copy; these are used where they lie, and may have changed since.
    if name == "skate":
        sources = [str(folder) for folder in sorted(ROOT.glob("libs/*/src"))]
        _run([str(interpreter), "-m", "compileall", "-q", *sources])


def find_uv() -> str | None:
    """The uv beside the running interpreter or on the path; None without one."""
    beside = Path(sys.executable).parent / "uv"
    return str(beside) if beside.exists() else shutil.which("uv")


def _stamp(name: str, python: str, arguments: Sequence[str]) -> str:
    digest = hashlib.sha256()
    digest.update(f"{python}\0{sys.version}\0{arguments}\0compiled".encode())
    files = [REQUIREMENTS / f"{name}.txt"]
    if name == "skate":
        files += [ROOT / "constraints.txt", *sorted(ROOT.glob("libs/*/pyproject.toml"))]
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _run(command: Sequence[str]) -> None:
    environment = os.environ | {"UV_PYTHON_DOWNLOADS": "never"}
    run = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    if run.returncode != 0:
        tail = "\n".join((run.stdout + run.stderr).splitlines()[-OUTPUT_LINES:])
        raise InstallationError(f"{' '.join(command[:4])} ended with {run.returncode}:\n{tail}")
