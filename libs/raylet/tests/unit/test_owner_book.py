"""Owners of other nodes, and what goes with them."""

from __future__ import annotations

from skate_raylet.service.owner_book import OwnerBook


def test_owners_of_a_node_that_dies_are_released() -> None:
    released: list[bytes] = []
    book = OwnerBook(released.append)
    book.know(b"a", b"n1")
    book.know(b"a", b"n1")
    book.know(b"b", b"n2")
    book.node_died(b"n1")
    assert released == [b"a"]


def test_owner_that_died_alone_is_not_released_again() -> None:
    released: list[bytes] = []
    book = OwnerBook(released.append)
    book.know(b"a", b"n1")
    book.forget(b"a")
    book.forget(b"unknown")
    book.node_died(b"n1")
    assert released == []


def test_owner_that_becomes_known_after_its_node_died_is_released_at_once() -> None:
    released: list[bytes] = []
    book = OwnerBook(released.append)
    book.node_died(b"n1")
    book.know(b"late", b"n1")
    assert released == [b"late"]
