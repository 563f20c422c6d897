"""The broadcast benchmark: its table, its options, its checksum, and a turn that goes wrong."""

from __future__ import annotations

import importlib.util
import sys

import pytest

from benchmarks.broadcast import Options, Samples, main, render, run_turn
from benchmarks.broadcast_round import CHECKED_BYTES, checksum
from benchmarks.machine_facts import machine_facts

OPTIONS = Options(nodes=2, megabytes=8, rounds=1, repeats=1, peers=("skate", "ray"))


def test_table_has_medians_spread_and_the_first_peers_advantage() -> None:
    samples: dict[str, Samples] = {
        "skate": {"first": [0.5], "repeated": [0.1, 0.2, 0.4]},
        "ray": {"first": [1.0], "repeated": [0.6]},
    }
    text = render(OPTIONS, machine_facts(), samples)
    assert "| s | skate | ray | skate : ray |" in text
    assert "| first | 0.500 [0.500-0.500] | 1.000 [1.000-1.000] | 2.00 |" in text
    assert "| repeated | 0.200 [0.100-0.400] | 0.600 [0.600-0.600] | 3.00 |" in text


def test_table_of_a_peer_that_failed_says_so_and_has_no_ratio() -> None:
    samples: dict[str, Samples] = {
        "skate": {"first": [0.5], "repeated": [0.1]},
        "ray": {"first": [], "repeated": []},
    }
    text = render(OPTIONS, machine_facts(), samples)
    assert "| first | 0.500 [0.500-0.500] | failed | - |" in text


def test_checksum_sees_the_first_and_the_last_byte() -> None:
    plain = bytes(1000)
    assert checksum(plain) == 0
    assert checksum(b"\1" + plain[1:]) == 1
    assert checksum(plain[:-1] + b"\1") == 1
    assert checksum(b"\1" * 1000) == CHECKED_BYTES + 1


def test_turn_of_a_peer_that_is_not_installed_fails_with_its_error() -> None:
    seconds, problem = run_turn(OPTIONS, "no_such_peer", sys.executable)
    assert seconds == []
    assert "no_such_peer" in problem


@pytest.mark.parametrize("arguments", [["--peers", "skate,nobody"], ["--nodes", "0"]])
def test_command_refuses_what_can_not_be_measured(arguments: list[str]) -> None:
    assert main(arguments) == 2


@pytest.mark.skipif(importlib.util.find_spec("skate") is None, reason="needs Skate installed")
def test_quick_run_reaches_every_node(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--quick", "--in-place"]) == 0
    shown = capsys.readouterr().out
    assert "| repeated | 0." in shown
    assert "failed" not in shown
