"""The table of RPCs is complete, and nothing light imports gRPC."""

from __future__ import annotations

import subprocess
import sys

import pytest

from skate_rpc.gen.skate.v1 import gcs_pb2, raylet_pb2
from skate_rpc.methods import METHODS
from skate_rpc.repeats import Repeat


def declared_methods() -> dict[str, bool]:
    """Every RPC of the protos, and whether it is a stream."""
    return {
        f"{service.name}.{method.name}": method.server_streaming
        for module in (gcs_pb2, raylet_pb2)
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }


def test_methods_table_lists_exactly_the_rpcs_of_the_protos() -> None:
    assert set(METHODS) == set(declared_methods())


def test_methods_table_gives_a_deadline_to_all_but_streams() -> None:
    for name, is_stream in declared_methods().items():
        assert (METHODS[name].deadline_s is None) is is_stream, name


def test_methods_table_names_a_key_for_each_change() -> None:
    for method in METHODS.values():
        assert bool(method.key) is (method.repeat is not Repeat.READ_ONLY), method.full_name


@pytest.mark.parametrize(
    "module",
    [
        "skate_rpc",
        "skate_rpc.stream",
        "skate_rpc.handshake",
        "skate_rpc.node_protocol",
        "skate_rpc.tokens",
        "skate_rpc.errors",
        "skate_rpc.methods",
        "skate_rpc.endpoints",
    ],
)
def test_import_light_module_loads_no_grpc(module: str) -> None:
    code = (
        f"import sys, {module}\n"
        "heavy = {'grpc', 'google', 'opentelemetry', 'prometheus_client'}\n"
        "sys.exit(' '.join(heavy & {name.partition('.')[0] for name in sys.modules}) or 0)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert result.returncode == 0, result.stderr
