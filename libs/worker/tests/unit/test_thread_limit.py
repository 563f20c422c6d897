from __future__ import annotations

import pytest

from skate_worker.thread_limit import VARIABLE, ThreadLimit


@pytest.mark.parametrize(
    ("units", "threads"), [(0, "1"), (5_000, "1"), (10_000, "1"), (25_000, "2"), (80_000, "8")]
)
def test_threads_follow_the_cpus(units: int, threads: str) -> None:
    environment: dict[str, str] = {}
    limit = ThreadLimit(environment)
    limit.follow({"CPU": 40_000})
    limit.follow({"CPU": units} if units else {})
    assert environment == {VARIABLE: threads}


def test_value_of_the_user_stays() -> None:
    environment = {VARIABLE: "3"}
    ThreadLimit(environment).follow({"CPU": 80_000})
    assert environment == {VARIABLE: "3"}


def test_value_that_a_library_set_meanwhile_stays() -> None:
    environment: dict[str, str] = {}
    limit = ThreadLimit(environment)
    limit.follow({"CPU": 20_000})
    environment[VARIABLE] = "7"
    limit.follow({"CPU": 10_000})
    assert environment == {VARIABLE: "7"}
