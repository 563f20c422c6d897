from __future__ import annotations

import subprocess
import sys

import pytest

import skate_object_store


def test_every_public_name_is_there() -> None:
    for name in skate_object_store.__all__:
        assert hasattr(skate_object_store, name)
    with pytest.raises(AttributeError, match="nonsense"):
        skate_object_store.nonsense  # noqa: B018


def test_client_starts_without_the_server_and_anything_installed() -> None:
    code = """
import sys, skate_object_store
loaded = {name.partition(".")[0] for name in sys.modules}
assert not loaded & {"numpy", "grpc", "msgspec", "skate_rpc", "logging", "asyncio"}, loaded
assert "skate_object_store.service.server" not in sys.modules
skate_object_store.StoreServer
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
