"""The NVIDIA GPUs of this machine: as the driver's library tells, else as ``/proc`` does.

NVML (extra ``gpu``, the module ``pynvml``) also says what kind they are. Whatever goes wrong with
it, the driver's folder in ``/proc`` still tells how many there are: a node starts with either.

Source: SURFACE Q5, T9, L8; the name of a kind is taken from the device's name as in Ray
(``NvidiaGPUAcceleratorManager``): ``NVIDIA H100 80GB HBM3`` is an ``H100``.
"""

from __future__ import annotations

import importlib
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

VISIBLE_VARIABLE: Final = "CUDA_VISIBLE_DEVICES"
_HIDE_ALL: Final = ("-1", "NoDevFiles")
_KIND: Final = re.compile(r"\w+\s+([A-Z0-9]+)")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Gpus:
    """What was found."""

    count: int
    kind: str = ""
    """``H100``; empty when it is not known, or when there are several kinds."""


@dataclass(frozen=True, slots=True)
class _Device:
    index: int
    uuid: str
    kind: str


def detect_gpus(
    environment: Mapping[str, str],
    count_in_proc: Callable[[], int],
    import_library: Callable[[], Any] = lambda: importlib.import_module("pynvml"),
) -> Gpus:
    """The GPUs that this process may use: those that ``CUDA_VISIBLE_DEVICES`` leaves.

    Args:
        environment: Where that variable is looked up: indexes, or (known to NVML alone) UUIDs or
            beginnings of them; what follows ``-1`` is hidden, as CUDA does it.
        count_in_proc: How many the driver's folder shows.
        import_library: Gives ``pynvml``, or raises ``ImportError``.
    """
    devices = _ask_nvml(import_library)
    if devices is None:
        present = count_in_proc()
        names = _visible_names(environment)
        return Gpus(present if names is None or not present else min(present, len(names)))
    names = _visible_names(environment)
    visible = devices if names is None else _choose(devices, names)
    kinds = {device.kind for device in visible}
    return Gpus(len(visible), kinds.pop() if len(kinds) == 1 else "")


def _visible_names(environment: Mapping[str, str]) -> list[str] | None:
    """The entries of the variable up to one that hides the rest; None when it is not set."""
    text = environment.get(VISIBLE_VARIABLE)
    if text is None:
        return None
    names = [name.strip() for name in text.split(",") if name.strip()]
    for at, name in enumerate(names):
        if name in _HIDE_ALL:
            return names[:at]
    return names


def _choose(devices: list[_Device], names: list[str]) -> list[_Device]:
    """The devices that are named; an unknown name hides itself and the rest, as CUDA does it."""
    chosen: list[_Device] = []
    for name in names:
        found = [
            device
            for device in devices
            if name == str(device.index) or (not name.isdigit() and device.uuid.startswith(name))
        ]
        if len(found) != 1 or found[0] in chosen:
            break
        chosen += found
    return chosen


def _ask_nvml(import_library: Callable[[], Any]) -> list[_Device] | None:
    """Every device; None when the library is not there, or can not be asked."""
    try:
        nvml = import_library()
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        _log.info("NVML can not be asked for GPUs", extra={"why": str(error)})
        return None
    try:
        devices = []
        for index in range(nvml.nvmlDeviceGetCount()):
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            name = _text(nvml.nvmlDeviceGetName(handle))
            found = _KIND.match(name)
            kind = found.group(1) if found else ""
            devices.append(_Device(index, _text(nvml.nvmlDeviceGetUUID(handle)), kind))
        return devices
    except nvml.NVMLError as error:
        _log.warning("NVML does not describe the GPUs", extra={"why": str(error)})
        return None
    finally:
        nvml.nvmlShutdown()


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
