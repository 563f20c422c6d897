"""Any policy, kept to the nodes whose labels match, the preferred ones first.

Selectors are alternatives in their order (a request's own selector, then its fallbacks): the first
under which some node has room *now* is taken, and only when there is none does the request wait for
the first that could ever serve it. Within one selector the nodes that also match ``preferred`` come
first.

Source: SURFACE rows L5 (hard and soft), L6, L7.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from skate_scheduler.labels import ANY_NODE, LabelSelector
from skate_scheduler.policy.hybrid import Fit, Placement

LabelTest = Callable[[Mapping[str, str]], bool]


@dataclass(frozen=True, slots=True)
class LabelRules:
    """Which nodes a request wants, by their labels. Hashable. The default: any."""

    selectors: tuple[LabelSelector, ...] = ()  # one of these must match; none: any node does
    preferred: LabelSelector = ANY_NODE  # nodes that match this too are taken first

    def __bool__(self) -> bool:
        return bool(self.selectors or self.preferred)

    def allow(self, labels: Mapping[str, str]) -> bool:
        """Whether a node with these labels may serve the request at all."""
        return not self.selectors or any(one.matches(labels) for one in self.selectors)

    def choose(self, policy: Callable[[LabelTest], Placement]) -> Placement:
        """Run ``policy``, which looks only at nodes that pass the test given to it, as often as
        needed: at most twice for each selector.
        """
        later: Placement | None = None
        for test in self._tests():
            placement = policy(test)
            if placement.fit is Fit.NOW:
                return placement
            if later is None and placement.fit is Fit.LATER:
                later = placement
        return later or Placement(Fit.NEVER, None)

    def _tests(self) -> Sequence[LabelTest]:
        tests: list[LabelTest] = []
        preferred = self.preferred
        for selector in self.selectors or (ANY_NODE,):
            if preferred:
                tests.append(_both(selector, preferred))
            tests.append(selector.matches)
        return tests

    def __str__(self) -> str:
        """For people: ``zone is a, or else disk is ssd``."""
        return ", or else ".join(map(str, self.selectors)) or "anything"


ANY_LABELS = LabelRules()


def _both(one: LabelSelector, other: LabelSelector) -> LabelTest:
    return lambda labels: one.matches(labels) and other.matches(labels)
