"""Placement groups as a program writes them: what is refused, and what the runtime is told."""

from __future__ import annotations

import pickle
import sys
from typing import Any

import pytest

import skate
import skate.util
from libs.api.tests.unit.recording_core import RecordingCore
from skate.util.placement_group import (
    PlacementGroup,
    get_current_placement_group,
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from skate.util.scheduling_strategies import PlacementGroupSchedulingStrategy as Inside
from skate_rpc.node_protocol import PlacementGroupView
from skate_worker.specs import Strategy


def told(core: RecordingCore, kind: str) -> list[Any]:
    return [call for call in core.calls if call[0] == kind]


def task_strategy(core: RecordingCore, **options: Any) -> Strategy | None:
    @skate.remote
    def f() -> None:
        return None

    f.options(**options).remote()
    strategy: Strategy | None = told(core, "task")[-1][4].strategy
    return strategy


# ---- making ----


@pytest.mark.parametrize(
    "bundles",
    [
        {"CPU": 1},
        ({"CPU": 1},),
        [],
        [{}],
        [{"CPU": 0}],
        [{"CPU": 1}, {"GPU": 0.0}],
        [{"CPU": "1"}],
        [{"CPU": -1}],
        [{"CPU": float("nan")}],
        [3],
        [{"CPU": 1}, {"GPU": 1.5}],
    ],
)
def test_bundles_that_can_not_be_are_refused_where_they_are_written(
    core: RecordingCore, bundles: Any
) -> None:
    with pytest.raises(ValueError, match="bundles"):
        placement_group(bundles)
    assert core.calls == []


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"strategy": "STACK"}, "strategy"),
        ({"lifetime": "non_detached"}, "lifetime"),
        ({"bundle_label_selector": [{}, {}]}, "bundle_label_selector"),
        ({"bundle_label_selector": {"zone": "a"}}, "bundle_label_selector"),
        ({"bundle_label_selector": [{"zone": "!in("}]}, "bundle_label_selector"),
        ({"_soft_target_node_id": "ab" * 28}, "_soft_target_node_id"),
        ({"_soft_target_node_id": "x", "strategy": "STRICT_PACK"}, "node"),
    ],
)
@pytest.mark.surface("P1", "P14")
def test_options_that_can_not_be_are_refused(core: RecordingCore, options: Any, names: str) -> None:
    with pytest.raises(ValueError, match=names):
        placement_group([{"CPU": 1}], **options)
    assert core.calls == []


@pytest.mark.surface("P1", "P14")
def test_creation_tells_the_runtime_all_there_is(core: RecordingCore) -> None:
    group = placement_group(
        [{"CPU": 1, "GPU": 0}, {"memory": 100.5}],
        "STRICT_PACK",
        name="n",
        lifetime="detached",
        _soft_target_node_id="ab" * 28,
        bundle_label_selector=[{"zone": "a"}, {}],
    )
    ((_, creation),) = told(core, "create_group")
    assert creation.group_id == bytes(group.id)
    assert creation.bundles == [{"CPU": 10_000}, {"memory": 1_000_000}]
    assert (creation.strategy, creation.name, creation.namespace) == ("STRICT_PACK", "n", "here")
    assert (creation.is_detached, creation.soft_target_id) == (True, b"\xab" * 28)
    assert creation.selectors == [{"zone": "a"}, {}]
    assert group.bundle_specs == [{"CPU": 1, "GPU": 0}, {"memory": 100.5}]
    assert group.bundle_count == 2


@pytest.mark.surface("P6")
def test_handles_are_equal_by_group_and_leave_once_the_group_is_known(core: RecordingCore) -> None:
    group = placement_group([{"CPU": 1}])
    assert told(core, "await_registered") == []
    again = pickle.loads(pickle.dumps(group))
    assert told(core, "await_registered") == [("await_registered", bytes(group.id))]
    assert again == group
    assert hash(again) == hash(group)
    assert again != placement_group([{"CPU": 1}])
    assert again.bundle_specs == group.bundle_specs


def test_removal_is_waited_for_where_it_outlives_the_process_or_frees_a_name(
    core: RecordingCore,
) -> None:
    plain = placement_group([{"CPU": 1}])
    named = placement_group([{"CPU": 1}], name="n")
    detached = placement_group([{"CPU": 1}], lifetime="detached")
    from_elsewhere = pickle.loads(pickle.dumps(plain))
    for group in (plain, named, detached, from_elsewhere):
        remove_placement_group(group)
    assert [call[2] for call in told(core, "remove_group")] == [False, True, True, True]
    remove_placement_group(PlacementGroup.empty())
    with pytest.raises(TypeError, match="PlacementGroup"):
        remove_placement_group("n")  # type: ignore[arg-type]


# ---- running inside ----


def test_strategy_names_group_bundle_and_capture(core: RecordingCore) -> None:
    group = placement_group([{"CPU": 1}, {"CPU": 2}])
    strategy = task_strategy(core, scheduling_strategy=Inside(group, 1, True))
    assert strategy == Strategy(group_id=bytes(group.id), bundle_index=1, captures=True)
    assert told(core, "await_registered"), "a task needs the group to be known"

    @skate.remote
    class Actor:
        pass

    Actor.options(scheduling_strategy=Inside(group)).remote()  # type: ignore[attr-defined]
    assert told(core, "create")[-1][4].strategy == Strategy(group_id=bytes(group.id))


@pytest.mark.parametrize("index", [2, -2, 1.0, True])
@pytest.mark.surface("P6", "P7")
def test_bundle_that_does_not_exist_is_refused_at_the_call(core: RecordingCore, index: Any) -> None:
    group = placement_group([{"CPU": 1}, {"CPU": 2}])
    with pytest.raises(ValueError, match="index"):
        task_strategy(core, scheduling_strategy=Inside(group, index))


@pytest.mark.surface("P7")
def test_request_that_fits_no_bundle_is_refused_at_the_call(core: RecordingCore) -> None:
    group = placement_group([{"CPU": 1}, {"CPU": 2}])
    with pytest.raises(ValueError, match="none of its bundles"):
        task_strategy(core, num_cpus=3, scheduling_strategy=Inside(group))
    with pytest.raises(ValueError, match="not bundle 0"):
        task_strategy(core, num_cpus=2, scheduling_strategy=Inside(group, 0))
    assert task_strategy(core, num_cpus=2, scheduling_strategy=Inside(group, 1))

    @skate.remote
    class Actor:
        pass

    gpus = placement_group([{"GPU": 1}])
    with pytest.raises(ValueError, match="The actor Actor"):  # a default actor is placed by a CPU
        Actor.options(scheduling_strategy=Inside(gpus)).remote()  # type: ignore[attr-defined]


def test_strategy_takes_groups_alone() -> None:
    for wrong in (None, "group", 3):
        with pytest.raises(ValueError, match="PlacementGroup"):
            Inside(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="capture"):
        Inside(PlacementGroup.empty(), placement_group_capture_child_tasks="yes")  # type: ignore[arg-type]


@pytest.mark.surface("T16")
def test_older_options_say_the_same_with_a_warning(core: RecordingCore) -> None:
    group = placement_group([{"CPU": 1}, {"CPU": 2}])
    with pytest.warns(DeprecationWarning, match="PlacementGroupSchedulingStrategy"):
        strategy = task_strategy(
            core,
            placement_group=group,
            placement_group_bundle_index=1,
            placement_group_capture_child_tasks=True,
        )
    assert strategy == Strategy(group_id=bytes(group.id), bundle_index=1, captures=True)
    with (
        pytest.warns(DeprecationWarning, match="deprecated"),
        pytest.raises(ValueError, match="give one of them"),
    ):
        task_strategy(core, placement_group=group, scheduling_strategy="SPREAD")
    with pytest.raises(ValueError, match="without a placement group"):
        task_strategy(core, placement_group_bundle_index=0)


@pytest.mark.surface("P8")
def test_children_go_into_a_group_that_captures_unless_they_say_otherwise(
    core: RecordingCore,
) -> None:
    group = placement_group([{"CPU": 1}])
    core.placement_groups.views_by_name["x"] = PlacementGroupView(
        bytes(group.id), "CREATED", bundles=[{"CPU": 10_000}]
    )
    assert get_current_placement_group() is None
    core.group_id = core.captured_group = bytes(group.id)
    assert get_current_placement_group() == group
    inside = Strategy(group_id=bytes(group.id), captures=True)
    assert task_strategy(core) == inside
    assert task_strategy(core, scheduling_strategy="DEFAULT") is None
    with pytest.warns(DeprecationWarning, match="deprecated"):
        assert task_strategy(core, placement_group=None) is None
    assert task_strategy(core, scheduling_strategy="SPREAD") == Strategy(is_spread=True)
    assert task_strategy(core, scheduling_strategy=Inside(group)) == inside, "and so do theirs"
    out = task_strategy(core, scheduling_strategy=Inside(group, -1, False))
    assert out == Strategy(group_id=bytes(group.id))
    context = skate.get_runtime_context()
    assert context.get_placement_group_id() == group.id.hex()
    assert context.should_capture_child_tasks_in_placement_group


def test_a_function_is_bound_anew_when_what_captures_changes(core: RecordingCore) -> None:
    group = placement_group([{"CPU": 1}])
    core.placement_groups.views_by_name["x"] = PlacementGroupView(
        bytes(group.id), "CREATED", bundles=[{"CPU": 10_000}]
    )

    @skate.remote
    def f() -> None:
        return None

    seen = []
    for captured in (b"", bytes(group.id), b""):
        core.captured_group = core.group_id = captured
        core.binding = object()
        f.remote()
        strategy = told(core, "task")[-1][4].strategy
        seen.append(None if strategy is None else strategy.group_id)
    assert seen == [None, bytes(group.id), None]
    assert len(core.exports) == 1


# ---- looking ----


@pytest.mark.surface("P11")
def test_groups_are_found_by_name(core: RecordingCore) -> None:
    group = placement_group([{"CPU": 1}], name="n")
    with pytest.raises(ValueError, match="name"):
        get_placement_group("")
    with pytest.raises(ValueError, match="'n'"):
        get_placement_group("n")
    core.placement_groups.views_by_name["n"] = PlacementGroupView(
        bytes(group.id), "CREATED", bundles=[{"CPU": 10_000}]
    )
    found = get_placement_group("n")
    assert found == group
    assert found.bundle_specs == [{"CPU": 1.0}]


@pytest.mark.surface("P12")
def test_table_has_rays_shape_and_the_reason(core: RecordingCore) -> None:
    group = placement_group([{"CPU": 1}])
    assert placement_group_table(group) == {}
    core.placement_groups.views_by_name["n"] = PlacementGroupView(
        bytes(group.id),
        "PENDING",
        name="n",
        strategy="PACK",
        bundles=[{"CPU": 10_000}],
        node_ids=[b""],
        pending_reason="It needs CPU 1.",
        scheduling_state="NO_RESOURCES",
        attempts=2,
    )
    row = placement_group_table(group)
    assert placement_group_table() == {group.id.hex(): row}
    assert row["placement_group_id"] == group.id.hex()
    assert (row["bundles"], row["bundles_to_node_id"]) == ({0: {"CPU": 1.0}}, {0: ""})
    assert (row["state"], row["strategy"], row["name"]) == ("PENDING", "PACK", "n")
    assert row["stats"]["scheduling_state"] == "NO_RESOURCES"
    assert row["stats"]["scheduling_attempt"] == 2
    assert row["stats"]["pending_reason"] == "It needs CPU 1."


def test_module_and_function_of_one_name_are_both_callable(core: RecordingCore) -> None:
    module: Any = sys.modules["skate.util.placement_group"]
    assert module([{"CPU": 1}]).bundle_count == 1
    assert skate.util.placement_group([{"CPU": 1}]).bundle_count == 1
