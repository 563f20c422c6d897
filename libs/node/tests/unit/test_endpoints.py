from __future__ import annotations

from typing import Any

import pytest

from skate_node.endpoints import plan_endpoints, reachable_from_here
from skate_node.options import NodeOptions


def test_endpoints_of_an_owned_node_are_unix_sockets_only() -> None:
    plan = plan_endpoints(NodeOptions(), "/s")
    assert plan.gcs == "unix:/s/sockets/gcs.sock"
    assert plan.raylet == "unix:/s/sockets/raylet.sock"
    assert plan.stream == "unix:/s/sockets/node.sock"
    assert plan.ip_address == "127.0.0.1"


def test_endpoints_of_a_loopback_head_stay_on_loopback() -> None:
    plan = plan_endpoints(NodeOptions(host="127.0.0.1", port=6379), "/s")
    assert (plan.gcs, plan.raylet) == ("127.0.0.1:6379", "127.0.0.1:0")


def test_endpoints_of_a_wildcard_head_advertise_a_real_address() -> None:
    plan = plan_endpoints(NodeOptions(host="0.0.0.0", port=6379), "/s")
    assert plan.gcs == "0.0.0.0:6379"
    assert plan.ip_address not in {"0.0.0.0", "::"}
    assert plan.raylet == f"{plan.ip_address}:0"


def test_endpoints_of_a_node_joining_over_loopback_stay_on_loopback() -> None:
    options = NodeOptions(is_head=False, gcs_address="localhost:6379", token="t" * 16)
    plan = plan_endpoints(options, "/s")
    assert (plan.gcs, plan.raylet) == ("localhost:6379", "127.0.0.1:0")


def test_endpoints_of_a_node_joining_a_unix_gcs_are_unix_sockets() -> None:
    options = NodeOptions(is_head=False, gcs_address="unix:/o/gcs.sock", token="t" * 16)
    assert plan_endpoints(options, "/s").raylet == "unix:/s/sockets/raylet.sock"


def test_endpoints_ipv6_head_is_bracketed() -> None:
    plan = plan_endpoints(NodeOptions(host="::1", port=6379), "/s")
    assert plan.gcs == "[::1]:6379"


def test_endpoints_address_of_a_named_host_is_what_the_name_stands_for() -> None:
    name = "node.skate.test"

    def resolve(host: str, *_: Any, **__: Any) -> list[Any]:
        assert host == name
        return [(2, 1, 6, "", ("10.1.2.3", 0))]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("socket.getaddrinfo", resolve)
        plan = plan_endpoints(NodeOptions(host=name, port=6379), "/s")
    assert plan.ip_address == "10.1.2.3"


@pytest.mark.parametrize(
    ("bound", "called"),
    [
        ("0.0.0.0:6379", "127.0.0.1:6379"),
        ("[::]:6379", "[::1]:6379"),
        ("10.1.2.3:6379", "10.1.2.3:6379"),
        ("unix:/s/gcs.sock", "unix:/s/gcs.sock"),
    ],
)
def test_reachable_wildcard_is_called_on_loopback(bound: str, called: str) -> None:
    assert reachable_from_here(bound) == called
