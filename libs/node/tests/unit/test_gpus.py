"""GPUs as NVML tells of them, played by a module that answers what the real one answered."""

from __future__ import annotations

from typing import Any

import pytest

from skate_node.gpus import Gpus, detect_gpus

H100 = ("NVIDIA H100 80GB HBM3", "GPU-11112222-aaaa")
H100_TOO = ("NVIDIA H100 80GB HBM3", "GPU-33334444-bbbb")
V100 = ("Tesla V100-SXM2-16GB", "GPU-55556666-cccc")


class Nvml:
    """The calls of ``pynvml`` that are used; names and ids of ``devices``."""

    class NVMLError(Exception):
        """As the library's own."""

    def __init__(self, *devices: tuple[str, str], fails: str = "") -> None:
        self.devices = devices
        self.fails = fails
        self.is_open = False

    def _maybe_fail(self, call: str) -> None:
        if call == self.fails:
            raise self.NVMLError("Driver/library version mismatch")

    def nvmlInit(self) -> None:  # noqa: N802  the library's names, here and below
        self._maybe_fail("init")
        self.is_open = True

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.is_open = False

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        self._maybe_fail("count")
        return len(self.devices)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetName(self, handle: int) -> str:  # noqa: N802
        return self.devices[handle][0]

    def nvmlDeviceGetUUID(self, handle: int) -> bytes:  # noqa: N802
        return self.devices[handle][1].encode()  # older releases answer bytes


def detect(nvml: Nvml, visible: str | None = None, in_proc: int = 9) -> Gpus:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    found = detect_gpus(environment, lambda: in_proc, lambda: nvml)
    assert not nvml.is_open
    return found


def test_gpus_are_counted_and_their_kind_is_named() -> None:
    assert detect(Nvml(H100, H100_TOO)) == Gpus(2, "H100")
    assert detect(Nvml(V100)) == Gpus(1, "V100")
    assert detect(Nvml()) == Gpus(0)


def test_several_kinds_have_no_one_name() -> None:
    assert detect(Nvml(H100, V100)) == Gpus(2)


@pytest.mark.parametrize(
    ("visible", "gpus"),
    [
        ("", Gpus(0)),
        ("0", Gpus(1, "H100")),
        ("1,2", Gpus(2)),
        ("2", Gpus(1, "V100")),
        ("0,-1,1", Gpus(1, "H100")),
        ("NoDevFiles", Gpus(0)),
        ("GPU-33334444-bbbb", Gpus(1, "H100")),
        ("GPU-5", Gpus(1, "V100")),
        ("GPU-", Gpus(0)),  # of whom?
        ("0,7,1", Gpus(1, "H100")),
        ("0,0", Gpus(1, "H100")),
    ],
)
def test_visible_devices_are_chosen_as_cuda_does(visible: str, gpus: Gpus) -> None:
    assert detect(Nvml(H100, H100_TOO, V100), visible) == gpus


@pytest.mark.parametrize("fails", ["init", "count"])
def test_library_that_fails_leaves_the_count_of_the_drivers_folder(fails: str) -> None:
    assert detect(Nvml(H100, fails=fails), in_proc=3) == Gpus(3)


def test_without_the_library_the_drivers_folder_is_counted() -> None:
    def absent() -> Any:
        raise ModuleNotFoundError("pynvml")

    assert detect_gpus({}, lambda: 2, absent) == Gpus(2)
    assert detect_gpus({"CUDA_VISIBLE_DEVICES": "0"}, lambda: 2, absent) == Gpus(1)
    assert detect_gpus({"CUDA_VISIBLE_DEVICES": "0"}, lambda: 0, absent) == Gpus(0)
