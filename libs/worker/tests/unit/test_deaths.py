"""What borrowers are told of an owner's death."""

from __future__ import annotations

from skate_rpc.node_protocol import Death
from skate_worker.deaths import Deaths
from skate_worker.machine.references import Owner

OWNER = Owner(b"w" * 28, "unix:/o", b"n" * 28)


def test_owner_is_dead_with_its_process_or_its_node() -> None:
    deaths = Deaths()
    assert not deaths.is_dead(OWNER)
    deaths.node_died(OWNER.node_id, Death("node_lost", "its machine is gone"))
    assert deaths.is_dead(OWNER)
    assert not deaths.is_dead(Owner(b"v" * 28, "unix:/v", b"m" * 28))
    deaths.worker_died(b"v" * 28, Death("exited", ""))
    assert deaths.is_dead(Owner(b"v" * 28, "unix:/v"))


def test_error_names_the_process_its_node_and_the_cause() -> None:
    deaths = Deaths()
    deaths.worker_died(OWNER.worker_id, Death("signaled", "", pid=7, signal=9))
    text = str(deaths.owner_died(b"o" * 28, OWNER))
    for part in (b"o" * 28, OWNER.worker_id, OWNER.node_id):
        assert part.hex() in text
    assert "pid=7" in text
    assert "SIGKILL" in text


def test_error_of_an_owner_that_went_with_its_node_names_the_nodes_cause() -> None:
    deaths = Deaths()
    deaths.node_died(OWNER.node_id, Death("node_lost", "its machine is gone."))
    assert "its node died: its machine is gone." in str(deaths.owner_died(b"o" * 28, OWNER))


def test_error_names_the_line_that_made_the_object_where_it_is_known() -> None:
    error = Deaths().owner_died(b"o" * 28, OWNER, call_site="train.py:3 in make")
    assert error.call_site == "train.py:3 in make"
    assert "created at: train.py:3 in make" in str(error)


def test_error_without_news_names_what_was_seen() -> None:
    assert "its connection is closed" in str(Deaths().owner_died(b"o" * 28, OWNER))
