from __future__ import annotations

import pytest

from skate_cluster.tables import BadFilterError, Row, filtered

ROWS: list[Row] = [
    {"actor_id": "abcdef01", "state": "ALIVE", "name": "a", "num_restarts": 0},
    {"actor_id": "abcd9999", "state": "DEAD", "name": "b", "num_restarts": 2},
    {"actor_id": "12345678", "state": "DEAD", "name": "", "num_restarts": 0},
]


@pytest.mark.parametrize(
    ("conditions", "names"),
    [
        ([], ["a", "b", ""]),
        (["state=dead"], ["b", ""]),
        (["state!=DEAD"], ["a"]),
        (["state=DEAD", "num_restarts=2"], ["b"]),
        (["actor_id=abcd"], ["a", "b"]),
        (["actor_id=abc"], []),
        (["name="], [""]),
        (["name!="], ["a", "b"]),
        ([" state = ALIVE "], ["a"]),
    ],
)
def test_every_condition_must_hold(conditions: list[str], names: list[str]) -> None:
    assert [row["name"] for row in filtered(ROWS, conditions)] == names


@pytest.mark.parametrize("text", ["state", "=x", "!=x", ""])
def test_condition_without_a_column_or_a_value_is_refused(text: str) -> None:
    with pytest.raises(BadFilterError, match="column=value"):
        filtered(ROWS, [text])


def test_unknown_column_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(BadFilterError, match="'sate'; the columns are: actor_id, name"):
        filtered(ROWS, ["sate=DEAD"])
    assert filtered([], ["sate=DEAD"]) == []
