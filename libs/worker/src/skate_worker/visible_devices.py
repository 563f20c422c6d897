"""Which accelerators of its node a worker's work may see: ids, and the variable that hides others.

A raylet numbers the devices of its node from 0. What a driver or a library understands is the name
that stands at that place in the node's own list (``CUDA_VISIBLE_DEVICES=2,3`` makes its device 1
the GPU ``3``), or the number itself when the node sees all. Work that asked for none sees none.
Source: SURFACE rows Q4, Q6; Ray's variables of the same purpose.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Final

VARIABLES: Final[Mapping[str, str]] = {
    "GPU": "CUDA_VISIBLE_DEVICES",
    "TPU": "TPU_VISIBLE_CHIPS",
    "neuron_cores": "NEURON_RT_VISIBLE_CORES",
}
"""By resource: what a process's environment says about the devices it may use."""
LEAVE_VARIABLE: Final = "SKATE_NOSET_{}"
"""With ``CUDA_VISIBLE_DEVICES`` and so on inside: set to anything but 0, the variable is left."""

ResourceIds = Mapping[str, Sequence[tuple[int, int]]]


class VisibleDevices:
    """Keeps the variables in step with what the worker holds."""

    def __init__(self, environment: MutableMapping[str, str]) -> None:
        """``environment`` still has the node's own lists."""
        self._environment = environment
        self._of_node = {
            resource: [one.strip() for one in given.split(",") if one.strip()]
            for resource, variable in VARIABLES.items()
            if (given := environment.get(variable)) is not None
        }
        self._is_left = {
            resource
            for resource, variable in VARIABLES.items()
            if environment.get(LEAVE_VARIABLE.format(variable), "0") not in ("", "0")
        }

    def follow(self, resource_ids: ResourceIds) -> dict[str, list[str]]:
        """``resource_ids``: the devices of the next work, ``(number, units of it)``.

        Sets the variables, and returns the names of the devices by resource.
        """
        names: dict[str, list[str]] = {}
        for resource, variable in VARIABLES.items():
            numbers = [number for number, _ in resource_ids.get(resource, ())]
            names[resource] = [self._name(resource, number) for number in numbers]
            if resource not in self._is_left:
                self._environment[variable] = ",".join(names[resource])
        return names

    def _name(self, resource: str, number: int) -> str:
        of_node = self._of_node.get(resource)
        if of_node is None or number >= len(of_node):
            return str(number)
        return of_node[number]
