from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from skate_scheduler import ResourceSet, WaitKind, WaitReason, find_missing

sets = st.dictionaries(st.sampled_from(["CPU", "GPU", "x"]), st.integers(1, 50)).map(ResourceSet)


@given(sets, sets, sets)
def test_find_missing_agrees_with_the_fit(
    needs: ResourceSet, free: ResourceSet, used: ResourceSet
) -> None:
    total = free.plus(used)
    found = find_missing(needs, free, total)
    if needs.fits_in(free):
        assert found is None
        return
    assert found is not None
    kind, missing = found
    assert missing
    assert (kind is WaitKind.INFEASIBLE) == (not needs.fits_in(total))
    for item in missing:
        assert item.needs > (item.total if kind is WaitKind.INFEASIBLE else item.available)


def test_sentence_names_needs_free_total_and_holders() -> None:
    needs = ResourceSet({"CPU": 20_000})
    total = ResourceSet({"CPU": 40_000})
    free = ResourceSet({"CPU": 10_000})
    found = find_missing(needs, free, total)
    assert found is not None
    reason = WaitReason(found[0], needs, total, free, 0.0, found[1], ("actor 12ab",))
    assert reason.sentence() == "Waits for CPU 2 (free 1 of 4); held by actor 12ab."


def test_sentence_infeasible_names_the_total() -> None:
    needs = ResourceSet({"GPU": 10_000})
    found = find_missing(needs, ResourceSet(), ResourceSet())
    assert found is not None
    reason = WaitReason(found[0], needs, ResourceSet(), ResourceSet(), 0.0, found[1])
    assert reason.sentence() == "This node can never hold it: it needs GPU 1 (total 0)."


def test_sentence_every_kind_has_one() -> None:
    empty = ResourceSet()
    for kind in WaitKind:
        reason = WaitReason(kind, empty, empty, empty, 0.0, detail="Elsewhere.")
        assert reason.sentence().endswith(".")
