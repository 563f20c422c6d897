"""The table of the task plane's messages: complete, and true of the handlers."""

from __future__ import annotations

import typing

from skate_rpc.repeats import Repeat
from skate_worker.task_messages import MESSAGES, WITH_SERIAL
from skate_worker.task_protocol import AnyMessage


def test_table_lists_exactly_the_messages_of_the_protocol() -> None:
    assert set(MESSAGES) == set(typing.get_args(AnyMessage))


def test_table_names_a_key_for_each_message_that_changes_something() -> None:
    for kind, message in MESSAGES.items():
        assert bool(message.key) is (message.repeat is not Repeat.READ_ONLY), kind.__name__


def test_exactly_what_carries_a_serial_is_known_by_it() -> None:
    carries = {kind for kind in MESSAGES if "serial" in kind.__struct_fields__}
    assert carries == WITH_SERIAL
    assert all(MESSAGES[kind].repeat is Repeat.ONCE for kind in carries)
