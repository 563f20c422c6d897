"""The table of the messages between a process and its raylet is complete."""

from __future__ import annotations

import typing

import pytest

from skate_rpc.node_messages import MESSAGES, WITH_SERIAL
from skate_rpc.node_protocol import FromProcess, FromRaylet
from skate_rpc.repeats import Repeat


@pytest.mark.invariant("I25")
def test_table_lists_exactly_the_messages_of_the_protocol() -> None:
    assert set(MESSAGES) == {*typing.get_args(FromProcess), *typing.get_args(FromRaylet)}


def test_table_names_a_key_for_each_message_that_changes_something() -> None:
    for kind, message in MESSAGES.items():
        assert bool(message.key) is (message.repeat is not Repeat.READ_ONLY), kind.__name__


def test_exactly_what_carries_a_serial_is_known_by_it() -> None:
    carries = {kind for kind in MESSAGES if "serial" in kind.__struct_fields__}
    assert carries == WITH_SERIAL
    assert all(MESSAGES[kind].repeat is Repeat.ONCE for kind in carries)
