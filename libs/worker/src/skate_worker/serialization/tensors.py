"""PyTorch's CPU tensors as out-of-band buffers.

Torch pickles a tensor's storage into the pickle itself, which copies it twice and never gives it
back without a copy. Here the elements travel as a buffer of their own. Torch has no read-only
tensors, and a write through one over the store's memory would end the process: so a large tensor is
rebuilt over a private mapping (a page is copied when it is first written to), a small one over a
copy. Both can be written to, and nobody else sees it.

Torch is not a dependency: this module is imported once a process that has imported torch pickles
something.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from pickle import PickleBuffer
from typing import TYPE_CHECKING, Any, Final

from skate_worker.current import current_slot

if TYPE_CHECKING:
    from types import ModuleType

PRIVATE_MIN_BYTES: Final = 256 * 1024  # below, a copy costs less than a mapping

Reduced = tuple[Any, ...]


def tensor_reducers(torch: ModuleType) -> dict[type, Callable[[Any], Reduced]]:
    """What reduces each exact class; ``NotImplemented`` from it: pickle it as torch does."""
    return {torch.Tensor: reduce_tensor, torch.nn.Parameter: reduce_tensor}


def reduce_tensor(tensor: Any) -> Any:
    """The parts of a tensor, or ``NotImplemented`` where torch's own way is needed.

    That is for tensors on devices, sparse, quantised and nested ones, and those with hooks or
    attributes. As with torch, the result is a leaf with the same ``requires_grad``, without
    gradient.
    """
    torch = sys.modules["torch"]
    if (
        tensor.layout is not torch.strided
        or tensor.device.type != "cpu"
        or tensor.is_quantized
        or tensor.is_nested
        or tensor._backward_hooks
        or tensor.__dict__
    ):
        return NotImplemented
    plain = tensor.detach().resolve_conj().resolve_neg()
    strides = plain.stride()
    if not _is_dense(plain.shape, strides):
        plain = plain.contiguous()  # of a part of a larger tensor only that part travels
        strides = plain.stride()
    return _rebuild, (
        PickleBuffer(_bytes_of(plain)),
        plain.dtype,
        tuple(plain.shape),
        tuple(strides),
        tensor.requires_grad,
        type(tensor) is not torch.Tensor,
    )


def _is_dense(shape: Any, strides: Any) -> bool:
    """Whether the elements fill their memory without gap or overlap, in whatever order."""
    expected = 1
    for stride, size in sorted(zip(strides, shape, strict=True)):
        if size == 0:
            return False
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True


def _bytes_of(tensor: Any) -> Any:
    size = tensor.numel() * tensor.element_size()
    if size == 0:
        return b""
    memory = (ctypes.c_ubyte * size).from_address(tensor.data_ptr())
    memory.owner = tensor
    return memory


def _rebuild(
    buffer: Any,
    dtype: Any,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    requires_grad: bool,
    is_parameter: bool,
) -> Any:
    import torch  # noqa: PLC0415 - only where a tensor arrives

    view = memoryview(buffer)
    if view.nbytes == 0:
        tensor = torch.empty(shape, dtype=dtype)
    else:
        memory = _writable(view) if view.readonly else view
        tensor = torch.frombuffer(memory, dtype=dtype).as_strided(shape, strides)
    if is_parameter:
        return torch.nn.Parameter(tensor, requires_grad=requires_grad)
    return tensor.requires_grad_(requires_grad) if requires_grad else tensor


def _writable(view: memoryview) -> Any:
    core = current_slot[0]
    if view.nbytes >= PRIVATE_MIN_BYTES and core is not None and core.ownership.store is not None:
        private = core.ownership.store.private_view(view)
        if private is not None:
            return private
    return bytearray(view)
