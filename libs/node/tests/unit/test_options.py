from __future__ import annotations

import json
import math

import pytest

from skate_node.options import NodeOptions, parse_labels, parse_resources


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("num_cpus", -1, ValueError),
        ("num_cpus", math.inf, ValueError),
        ("num_cpus", math.nan, ValueError),
        ("num_cpus", "2", TypeError),
        ("num_cpus", True, TypeError),
        ("num_gpus", 0.00001, ValueError),
        ("memory", 1.5, TypeError),
        ("memory", -1, ValueError),
        ("object_store_memory", 10 * 1024 * 1024, ValueError),
        ("spill_dir", "relative/place", ValueError),
        ("spill_dir", 7, TypeError),
        ("port", 65536, ValueError),
        ("port", True, TypeError),
        ("metrics_port", -1, ValueError),
        ("resources", {"CPU": 1}, ValueError),
        ("resources", {"GPU": 1}, ValueError),
        ("resources", {"memory": 1}, ValueError),
        ("resources", {"node:10.0.0.1": 1}, ValueError),
        ("resources", {"": 1}, TypeError),
        ("resources", {"disk": -2}, ValueError),
        ("labels", {"a": 1}, TypeError),
        ("labels", {"": "a"}, ValueError),
        ("labels", {"a": "b c"}, ValueError),
        ("labels", {"ray.io/node-id": "a"}, ValueError),
        ("storage", "redis:x", ValueError),
        ("storage", "etcd://x", ValueError),
        ("storage", "sqlite:relative", ValueError),
        ("infeasible_timeout_s", -1, ValueError),
        ("infeasible_timeout_s", "10", ValueError),
        ("token", "  ", ValueError),
        ("gcs_address", "127.0.0.1:1", ValueError),
    ],
)
def test_options_invalid_value_raises_naming_the_option(
    name: str, value: object, error: type[Exception]
) -> None:
    with pytest.raises(error) as caught:
        NodeOptions(**{name: value})  # type: ignore[arg-type]
    assert name.removeprefix("num_") in str(caught.value)


def test_options_joining_without_token_raises() -> None:
    with pytest.raises(ValueError, match="token"):
        NodeOptions(is_head=False, gcs_address="127.0.0.1:6379")


def test_options_through_json_are_equal() -> None:
    options = NodeOptions(num_cpus=0.5, resources={"disk": 2.0}, labels={"a": "b"}, token="t" * 16)
    assert NodeOptions.from_json(json.loads(json.dumps(options.to_json()))) == options


def test_options_repr_hides_the_token() -> None:
    assert "secret" not in repr(NodeOptions(token="secret-secret-secret"))


@pytest.mark.parametrize("text", ["[1]", "{", '{"a": "x"}', '{"a": true}', "7"])
def test_parse_resources_malformed_raises_naming_resources(text: str) -> None:
    with pytest.raises(ValueError, match="resources"):
        parse_resources(text)


def test_parse_resources_object_gives_floats() -> None:
    assert parse_resources('{"disk": 2, "x": 0.5}') == {"disk": 2.0, "x": 0.5}


@pytest.mark.parametrize("text", ['{"zone": "a", "tier": "hot"}', "zone=a, tier=hot"])
def test_parse_labels_both_spellings_agree(text: str) -> None:
    assert parse_labels(text) == {"zone": "a", "tier": "hot"}


def test_parse_labels_without_equals_raises() -> None:
    with pytest.raises(ValueError, match="key=value"):
        parse_labels("zone")
