"""The checks and tests of the workspace: ``nox --list`` shows them, ``ci`` runs the usual ones.

Each library's tests run in an environment that holds that library, what it depends on (siblings
from the checkout) and its ``test`` extra, so an undeclared dependency fails there. Environments are
made anew for each run: with uv that costs less than working out whether an old one still fits.

    nox -s "tests(core-ids)"              one library, on the Python that runs nox
    nox -P 3.12 -s "tests(core-ids)"      the same on another Python
    nox -s tests_other_pythons            all libraries on every other supported Python found here
    nox -s "tests(rpc)" -- -k handshake   arguments after -- go to pytest
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import nox

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))

from tools.totals import report_name  # noqa: E402 - nox runs this file without its folder on the path
from tools.workspace import Member, closure, read_members  # noqa: E402 - as above

if TYPE_CHECKING:
    from collections.abc import Iterable

REPORTS = ROOT / "build" / "reports"
SUPPORTED_PYTHONS = ("3.11", "3.12", "3.13")
TESTING = ("pytest", "pytest-timeout")
# What the tests across libraries need beyond what a user of Skate has installed.
INTEGRATION = ("numpy", "opentelemetry-proto", "redis")
# Of those, the ones in which objects, calls and tasks cross nodes.
MULTINODE = (
    "test_cluster_utils.py",
    "test_gcs_restart.py",
    "test_generators_nodes.py",
    "test_node_ends.py",
    "test_object_calls_between_nodes.py",
    "test_copies_that_can_not_be_had.py",
    "test_object_plane.py",
    "test_object_plane_four_nodes.py",
    "test_spillback.py",
    "test_tcp_nodes.py",
    "test_transfer.py",
    "test_transfer_networks.py",
)

nox.needs_version = ">=2026.10"
nox.options.default_venv_backend = "uv|venv"
nox.options.download_python = "never"
nox.options.sessions = ["lint", "types", "layers", "tests"]
os.environ["UV_PYTHON_DOWNLOADS"] = "never"  # an interpreter is found, or the session says so

MEMBERS = read_members(ROOT)


def interpreter_folders() -> dict[str, Path]:
    """Where each supported Python lives, by version: on the PATH first, then under pyenv.

    pyenv puts only chosen versions on the PATH, and its shims answer for the others with an error,
    so its ``versions`` folder is read instead.
    """
    pyenv = shutil.which("pyenv")
    roots = [Path(os.environ["PYENV_ROOT"])] if os.environ.get("PYENV_ROOT") else []
    roots += [Path(pyenv).resolve().parent.parent] if pyenv else []
    roots.append(Path.home() / ".pyenv")
    on_path = [Path(entry) for entry in os.environ.get("PATH", "").split(os.pathsep) if entry]
    folders = [folder for folder in on_path if folder.name != "shims"]
    for root in roots:
        folders += sorted(root.glob("versions/3.*/bin"), reverse=True)
    found: dict[str, Path] = {}
    for version in SUPPORTED_PYTHONS:
        for folder in folders:
            if os.access(folder / f"python{version}", os.X_OK):
                found[version] = folder
                break
    return found


THIS_PYTHON = "{}.{}".format(*sys.version_info[:2])
OTHER_PYTHONS = {
    version: folder for version, folder in interpreter_folders().items() if version != THIS_PYTHON
}
# nox looks on the PATH; a shim found there first would answer with an error.
os.environ["PATH"] = os.pathsep.join(
    [*map(str, OTHER_PYTHONS.values()), os.environ.get("PATH", os.defpath)]
)


def install(
    session: nox.Session, members: Iterable[Member], *tools: str, tested: Iterable[Member] = ()
) -> None:
    """Install members from the checkout, editable, and tools; ``tested`` get their test extra."""
    with_extra = {member.key for member in tested if "test" in member.extras}
    arguments = ["-q", "-c", "constraints.txt"]
    for member in members:
        extra = "[test]" if member.key in with_extra else ""
        arguments += ["-e", f"{member.folder.relative_to(ROOT)}{extra}"]
    session.install(*arguments, *tools)


def run_pytest(session: nox.Session, *arguments: str) -> None:
    """Run pytest with the root's settings and leave a JUnit file for ``tools/totals.py``."""
    REPORTS.mkdir(parents=True, exist_ok=True)
    junit = REPORTS / report_name(session.name)
    junit.unlink(missing_ok=True)
    session.run(
        "python", "-m", "pytest", "-c", "pyproject.toml", f"--junitxml={junit}", "-q",
        *arguments, *session.posargs,
    )  # fmt: skip


def test_member(session: nox.Session, key: str) -> None:
    """Test one member with nothing but its own closure installed."""
    member = MEMBERS[key]
    install(session, closure(member, MEMBERS), *TESTING, tested=[member])
    run_pytest(session, str(member.tests.relative_to(ROOT)), "-m", "not planted")


@nox.session
@nox.parametrize("lib", list(MEMBERS), ids=list(MEMBERS))
def tests(session: nox.Session, lib: str) -> None:
    """Test one library or app in an environment of its own."""
    test_member(session, lib)


if OTHER_PYTHONS:

    @nox.session(python=list(OTHER_PYTHONS), default=False)
    @nox.parametrize("lib", list(MEMBERS), ids=list(MEMBERS))
    def tests_other_pythons(session: nox.Session, lib: str) -> None:
        """Test one library or app on another Python than the one that runs nox."""
        test_member(session, lib)


@nox.session
def tools(session: nox.Session) -> None:
    """Test the developers' tools."""
    session.install("-q", "-c", "constraints.txt", *TESTING)
    run_pytest(session, "tools/tests")


@nox.session
def lint(session: nox.Session) -> None:
    """Style, formatting, and the house rules that ruff cannot know."""
    session.install("-q", "-c", "constraints.txt", "ruff")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", "--quiet", ".")
    session.run("python", "tools/tidy.py")
    session.run("python", "tools/promises.py", "--check")
    session.run("python", "tools/surface.py", "--check")


@nox.session
def types(session: nox.Session) -> None:
    """Check types strictly, over every library, app, tool and example."""
    everything = MEMBERS.values()
    checkers = ("mypy", "nox", "types-grpcio", "types-protobuf", "types-psutil")
    install(session, everything, *TESTING, *checkers, tested=everything)
    sources = [str(member.folder.relative_to(ROOT) / "src") for member in everything]
    scripts = ("dev.py", "noxfile.py", "examples/word_count.py", "tests/typing/api_types.py")
    session.run("mypy", *sources, "benchmarks", "tools", *scripts)


@nox.session
def pyright(session: nox.Session) -> None:
    """Check what pyright sees of the public API, and that it knows the type of all of it."""
    install(session, MEMBERS.values(), *TESTING, "pyright[nodejs]")
    session.run("pyright", "--project", "tests/typing")
    session.run("python", "tools/type_completeness.py")


@nox.session
def layers(session: nox.Session) -> None:
    """Check that imports only point down and that machines stay pure."""
    folders = [f"-e{member.folder.relative_to(ROOT)}" for member in MEMBERS.values()]
    session.install("-q", "--no-deps", *folders)
    session.install("-q", "-c", "constraints.txt", "import-linter")
    session.run("lint-imports", "--no-cache")


@nox.session
def protos(session: nox.Session) -> None:
    """Check that the committed gRPC code is what the .proto files give."""
    session.install("-q", "-c", "constraints.txt", "grpcio-tools", "mypy-protobuf")
    session.run("python", "tools/generate_protos.py", "--check")


@nox.session
def integration(session: nox.Session) -> None:
    """Test what crosses libraries, on real processes."""
    install(session, MEMBERS.values(), *TESTING, *INTEGRATION)
    run_pytest(session, "tests", "-m", "not chaos")


@nox.session
def joblib(session: nox.Session) -> None:
    """Test the back end of joblib with scikit-learn, which nothing else here needs."""
    install(session, MEMBERS.values(), *TESTING, *INTEGRATION, "joblib", "scikit-learn")
    run_pytest(session, "tests/integration/test_util_joblib.py")


@nox.session(default=False)
def sim(session: nox.Session) -> None:
    """More seeds of the simulations, and every planted bug: ``nox -s sim -- --seeds 200000``."""
    member = MEMBERS["sim"]
    install(session, closure(member, MEMBERS), *TESTING, tested=[member, MEMBERS["worker"]])
    which = "random_sessions or under_faults or planted"
    run_pytest(session, "libs/worker/tests/sim", "libs/sim/tests/sim", "-k", which)


@nox.session(default=False)
def chaos(session: nox.Session) -> None:
    """Kill and stop processes of a running cluster, cut its lines, spoil what goes over them.

    ``nox -s chaos -- --faults 3000 -k leaves``: 40 kills take a minute, 10 stops or cuts half a
    minute. All of it takes some ten minutes with the 50 faults a test that are the default.
    """
    install(session, MEMBERS.values(), *TESTING, *INTEGRATION)
    run_pytest(session, "tests", "-m", "chaos")


@nox.session
def chaos_short(session: nox.Session) -> None:
    """Kill a dozen workers and nodes under random task graphs: what ``chaos`` does for long."""
    install(session, MEMBERS.values(), *TESTING, *INTEGRATION)
    which = ("tests/chaos/test_random_graphs.py", "-k", "leaves")
    run_pytest(session, *which, "--faults", "12", "--new-work-s", "60")


@nox.session(default=False)
def multinode(session: nox.Session) -> None:
    """Test clusters of several nodes alone; ``integration`` has these tests too."""
    install(session, MEMBERS.values(), *TESTING, *INTEGRATION)
    folder = Path("tests", "integration")
    run_pytest(session, *(str(folder / name) for name in MULTINODE), "-m", "not chaos")


@nox.session(default=False, venv_backend="none")
def bench(session: nox.Session) -> None:
    """Run the benchmarks, which make their own environments; arguments after -- are theirs."""
    session.run(sys.executable, "-m", "benchmarks", *session.posargs)


@nox.session
def bench_smoke(session: nox.Session) -> None:
    """Run each benchmark once, small and on Skate alone, so that none of them rots."""
    install(session, MEMBERS.values(), *TESTING, "numpy", "psutil", "redis")
    run_pytest(session, "benchmarks/tests")


@nox.session(default=False, venv_backend="none")
def ci(session: nox.Session) -> None:
    """Queue what every change must pass."""
    for name in ("lint", "types", "pyright", "layers", "protos", "tools"):
        session.notify(name)
    for key in MEMBERS:
        session.notify(f"tests({key})")
    for name in ("integration", "joblib", "chaos_short", "bench_smoke"):
        session.notify(name)
