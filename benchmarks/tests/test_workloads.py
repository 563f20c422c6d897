"""The workloads and the choice of them."""

from __future__ import annotations

import pytest

from benchmarks.command import main, select
from benchmarks.peers import PEER_NAMES, peer_class
from benchmarks.plan import Sizes, default_plan, full_plan, quick_plan
from benchmarks.round_process import Spec
from benchmarks.workload import Stage, Workload
from benchmarks.workloads import all_workloads


def test_registry_second_workload_of_an_id_is_refused() -> None:
    registry = all_workloads()
    with pytest.raises(ValueError, match="init"):
        registry.add(registry["init"])


def test_every_workload_outside_the_lifecycle_has_a_body() -> None:
    bare = [each.id for each in all_workloads() if each.body is None]
    staged = [each.id for each in all_workloads() if each.stage is Stage.LIFECYCLE]
    assert bare == staged


def test_select_matches_part_of_id_or_title_or_glob() -> None:
    registry = all_workloads()
    assert select(registry, ["put_small"]) == ["put_small", "multi_put_small"]
    assert select(registry, ["10,000 ARG"]) == ["arguments_10k"]
    assert select(registry, ["put_*"]) == ["put_small", "put_gigabytes", "put_gigabytes_warm"]
    assert select(registry, ["nothing like it"]) == []
    assert len(select(registry, [])) == len(list(registry))


@pytest.mark.parametrize("name", PEER_NAMES)
def test_peer_class_is_found_without_its_peer_installed(name: str) -> None:
    assert peer_class(name).name == name
    assert peer_class(name).import_statement


@pytest.mark.parametrize("name", ["pool", "executor", "memcpy", "pickling", "xoscar", "dask"])
def test_peer_that_lacks_something_says_why(name: str) -> None:
    lacks = peer_class(name).lacks
    assert lacks
    assert all(lacks.values())


@pytest.mark.parametrize("plan", [default_plan(2), full_plan(2), quick_plan(1)])
def test_spec_survives_its_journey_as_json(plan: object) -> None:
    spec = Spec("pool", ["init", "tasks_sync"], plan, 7)  # type: ignore[arg-type]
    assert Spec.from_json(spec.to_json()) == spec


def test_default_sizes_are_those_of_the_full_plan_but_for_the_documented_one() -> None:
    different = {
        name
        for name in Sizes.__slots__
        if getattr(default_plan(2).sizes, name) != getattr(full_plan(2).sizes, name)
    }
    assert different == {"tasks_per_submitter"}


def test_command_unknown_peer_ends_with_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--peers", "skate,nobody"]) == 2
    assert "nobody" in capsys.readouterr().err


def test_command_list_shows_every_workload(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    shown = capsys.readouterr().out
    workloads: list[Workload] = list(all_workloads())
    assert all(workload.title in shown for workload in workloads)
