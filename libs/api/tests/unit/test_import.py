"""What ``import skate`` loads and offers."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import subprocess
import sys

import pytest

import skate
from skate import exceptions

PRINT_MODULES = "import json, sys; {code}; print(json.dumps(sorted(sys.modules)))"


def modules_after(code: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after this statement."""
    done = subprocess.run(
        [
            sys.executable,
            "-I",
            "-S",
            "-c",
            f"import sys; sys.path[:] = {sys.path!r}; " + PRINT_MODULES.format(code=code),
        ],
        capture_output=True,
        check=True,
        text=True,
        timeout=30,
    )
    return set(json.loads(done.stdout))


def test_import_loads_only_the_standard_library_and_itself() -> None:
    loaded = modules_after("import skate") - modules_after("pass")

    foreign = {name.partition(".")[0] for name in loaded} - set(sys.stdlib_module_names)
    assert foreign == {"skate"}
    assert {name for name in loaded if name.startswith("skate")} == {"skate"}


def test_import_loads_few_modules() -> None:
    # A bound on modules, which does not depend on the machine as a bound on time would.
    assert len(modules_after("import skate") - modules_after("pass")) < 60


def test_decorating_loads_no_grpc_and_no_numpy() -> None:
    loaded = modules_after("import skate; skate.remote(lambda: 1); skate.init; skate.get")

    assert not {"grpc", "numpy", "google.protobuf", "opentelemetry"} & loaded


def test_every_public_name_loads() -> None:
    for name in skate.__all__:
        assert getattr(skate, name) is not None


def test_table_of_names_is_what_the_type_checker_reads() -> None:
    tree = ast.parse(inspect.getsource(skate))
    block = next(n for n in tree.body if isinstance(n, ast.If))
    read = {
        alias.asname: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }

    assert {name: module for name, module in read.items() if module != "skate"} == skate._MODULE_OF
    assert {name for name, module in read.items() if module == "skate"} == set(skate._SUBMODULES)


def test_unknown_name_raises_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        skate.no_such_name  # type: ignore[attr-defined]  # noqa: B018


def test_dir_lists_the_names_before_they_are_loaded() -> None:
    assert {"init", "remote", "exceptions", "util"} <= set(dir(skate))


def test_exceptions_has_all_errors_of_the_runtime() -> None:
    errors = importlib.import_module("skate_worker.errors")
    public = {name for name in errors.__all__ if isinstance(getattr(errors, name), type)}

    assert public <= set(exceptions.__all__)
    assert all(hasattr(exceptions, name) for name in exceptions.__all__)
