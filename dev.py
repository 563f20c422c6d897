#!/usr/bin/env python3
"""Set up a checkout of Skate and run it: the two commands of the README.

    python3 dev.py demo      set up, then run examples/word_count.py
    python3 dev.py test      set up, then run every check and test, and print one line of totals
    python3 dev.py setup     set up only

Needs Python 3.11 or newer and pip (or ensurepip), and nothing else. ``test`` also wants Debian's
``redis-server`` and installs it where it may (as root, with apt); without it some tests are skipped
and say so. The environment is ``.venv`` in the checkout; a second run reuses it. Arguments after
``demo`` go to the example, arguments after ``test`` to nox (``python3 dev.py test -s
"tests(core-ids)"``).

Only the standard library is imported here, because this runs before anything is installed.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / "bin" / "python"
CONSTRAINTS = ROOT / "constraints.txt"
REPORTS = ROOT / "build" / "reports"
OLDEST_PYTHON = (3, 11)


def main(arguments: list[str]) -> int:
    """Run one command; the result is the process's exit status."""
    if sys.version_info < OLDEST_PYTHON:
        return _refuse(f"Skate needs Python 3.11 or newer, and this is {sys.version.split()[0]}.")
    if not sys.platform.startswith("linux"):
        return _refuse(f"Skate runs on Linux, and this is {sys.platform}.")
    command, rest = (arguments[0], arguments[1:]) if arguments else ("help", [])
    if command not in {"setup", "demo", "test"}:
        print(__doc__)
        return 0 if command in {"help", "-h", "--help"} else 2
    try:
        set_up()
    except SetUpError as error:
        return _refuse(str(error))
    if command == "demo":
        return _run([VENV_PYTHON, ROOT / "examples" / "word_count.py", *rest])
    if command == "test":
        # A shell starts background jobs with Ctrl-C ignored, and children inherit that; tests of
        # Ctrl-C need it heard. With a handler set here, every child starts with the default again.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        return run_tests(rest)
    print(f"Ready: {VENV.name}/bin/python imports skate, {VENV.name}/bin/nox runs the checks.")
    return 0


class SetUpError(Exception):
    """The environment could not be made; the message is one sentence for the person."""


def set_up() -> None:
    """Make ``.venv`` with uv and nox in it, then bring in the workspace. Cheap when all is there.

    Raises:
        SetUpError: no way to install packages, or an installer failed.
    """
    if not _has_usable_environment():
        _make_environment()
    if not _has_pinned_uv():
        _say("installing uv and nox")
        _install_with_pip(["uv", "nox"])
    _say("bringing the workspace up to date")
    sync = [str(_in_venv("uv")), "sync", "--all-packages", "--all-extras", "--quiet"]
    if _run([*sync, "--python", str(VENV_PYTHON)], environment=installer_environment()) != 0:
        raise SetUpError("uv could not install the workspace; its message stands above.")


def install_servers() -> None:
    """Install what tests start and no package registry has, where this user may."""
    if shutil.which("redis-server") is not None:
        return
    apt = shutil.which("apt-get")
    if apt is None or os.geteuid() != 0:
        _say("there is no redis-server: tests of the redis storage will be skipped")
        return
    _say("installing redis-server")
    # The package would start a server of its own; a policy that says no keeps it from that.
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    for arguments in (["update"], ["install", "--yes", "--no-install-recommends", "redis-server"]):
        if _run([apt, "-qq", *arguments], environment=environment) != 0:
            _say("apt could not install redis-server: tests of the redis storage will be skipped")
            return


def run_tests(arguments: list[str]) -> int:
    """Run nox (``ci`` unless told otherwise) and end with one line of totals over all sessions."""
    install_servers()
    shutil.rmtree(REPORTS, ignore_errors=True)
    REPORTS.mkdir(parents=True)
    report = REPORTS / "nox.json"
    chosen = arguments or ["--session", "ci"]
    status = _run(
        [VENV_PYTHON, "-m", "nox", "--report", report, *chosen],
        environment=installer_environment(),
    )
    return _run([VENV_PYTHON, ROOT / "tools" / "totals.py", REPORTS, "--status", str(status)])


def installer_environment() -> dict[str, str]:
    """The environment for uv: never fetch an interpreter, and use the index that pip is set to."""
    environment = {**os.environ, "UV_PYTHON_DOWNLOADS": "never"}
    environment.pop("VIRTUAL_ENV", None)
    environment.pop("UV_PROJECT_ENVIRONMENT", None)
    if not {"UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INDEX", "UV_OFFLINE"} & environment.keys():
        index = _pip_setting("index-url")
        if index:
            environment["UV_DEFAULT_INDEX"] = index
    if "SSL_CERT_FILE" not in environment:
        certificates = _pip_setting("cert")
        if certificates:
            environment["SSL_CERT_FILE"] = certificates
    return environment


def _has_usable_environment() -> bool:
    """Whether ``.venv`` holds a working interpreter of this very version."""
    if not VENV_PYTHON.exists():
        return False
    probe = "import sys; print('%d.%d' % sys.version_info[:2])"
    found = _output([VENV_PYTHON, "-c", probe])
    return found == "{}.{}".format(*sys.version_info[:2])


def _make_environment() -> None:
    _say(f"making {VENV.name} with Python {sys.version.split()[0]}")
    shutil.rmtree(VENV, ignore_errors=True)
    # A tenth of the time with pip: pip is lent by the interpreter that runs this, where it has one.
    options = ["--without-pip"] if _own_pip_serves_others() else []
    if _run([sys.executable, "-m", "venv", *options, VENV]) != 0:
        shutil.rmtree(VENV, ignore_errors=True)
        raise SetUpError(
            f"{sys.executable} has neither pip nor ensurepip: install the system's python3-pip or"
            " python3-venv package, then run this again."
        )


def _has_pinned_uv() -> bool:
    if not _in_venv("uv").exists() or not _in_venv("nox").exists():
        return False
    pinned = dict(line.split("==") for line in CONSTRAINTS.read_text("utf-8").split())
    return _output([_in_venv("uv"), "--version"]).split()[1:2] == [pinned["uv"]]


def _install_with_pip(names: list[str]) -> None:
    lent = _own_pip_serves_others()
    pip = [sys.executable, "-m", "pip", "--python"] if lent else []
    pip += [str(VENV_PYTHON)] if lent else [str(VENV_PYTHON), "-m", "pip"]
    pip += ["install", "--quiet", "--disable-pip-version-check", "--constraint", str(CONSTRAINTS)]
    if _run([*pip, *names]) != 0:
        raise SetUpError(f"pip could not install {' and '.join(names)}; its message stands above.")


def _own_pip_serves_others() -> bool:
    """Whether this interpreter has a pip with the option ``--python`` (22.3 and newer)."""
    if importlib.util.find_spec("pip") is None:
        return False
    words = _output([sys.executable, "-m", "pip", "--version"]).split()
    version = words[1].split(".") if len(words) > 1 else []
    return len(version) > 1 and [int(part) for part in version[:2] if part.isdigit()] >= [22, 3]


def _pip_setting(name: str) -> str:
    """What pip's environment variables or files say about this option, or nothing."""
    from_environment = os.environ.get("PIP_" + name.upper().replace("-", "_"), "")
    if from_environment or importlib.util.find_spec("pip") is None:
        return from_environment
    for section in ("install", "global"):
        found = _output([sys.executable, "-m", "pip", "config", "get", f"{section}.{name}"])
        if found:
            return found
    return ""


def _in_venv(tool: str) -> Path:
    return VENV / "bin" / tool


def _run(command: Sequence[str | Path], environment: dict[str, str] | None = None) -> int:
    """Run a command in the checkout with this terminal; its exit status (128 + n for a signal)."""
    try:
        status = subprocess.run(
            [str(part) for part in command], cwd=ROOT, env=environment, check=False
        ).returncode
    except KeyboardInterrupt:
        return 130
    return status if status >= 0 else 128 - status


def _output(command: Sequence[str | Path]) -> str:
    """What a command prints, or nothing when it cannot be run or fails."""
    try:
        done = subprocess.run(
            [str(part) for part in command], cwd=ROOT, capture_output=True, text=True, check=False
        )
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _say(what: str) -> None:
    print(f"skate: {what}", file=sys.stderr, flush=True)


def _refuse(why: str) -> int:
    print(f"skate: {why}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
