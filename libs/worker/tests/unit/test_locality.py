from __future__ import annotations

from skate_worker.machine.locality import NODES_MAX, nearest

HERE, A, B = b"here", b"a", b"b"


def test_node_with_most_bytes_of_all_arguments_comes_first() -> None:
    assert nearest([([A], 3), ([B], 2), ([B, HERE], 2)], HERE) == [(B, 4), (A, 3), (HERE, 2)]


def test_node_of_the_owner_is_left_only_for_more_bytes() -> None:
    assert nearest([([A], 3), ([HERE], 3)], HERE) == []
    assert nearest([([A, HERE], 3)], HERE) == []
    assert nearest([], HERE) == []
    assert nearest([([], 5)], HERE) == []
    assert nearest([([A], 4), ([HERE], 3)], HERE) == [(A, 4), (HERE, 3)]


def test_request_names_few_nodes_and_equal_ones_in_a_fixed_order() -> None:
    arguments = [([bytes([number])], 1) for number in reversed(range(10))]
    assert nearest(arguments, HERE) == [(bytes([n]), 1) for n in range(NODES_MAX)]
