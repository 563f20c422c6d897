"""PyTorch tensors as values: equal, writable, and without torch's own pickling."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from skate_worker.serialization import (
    deregister_serializer,
    deserialize,
    register_serializer,
    serialize,
)

torch = pytest.importorskip("torch")


def round_trip(value: Any) -> Any:
    return deserialize(memoryview(serialize(value).to_bytes()))


TENSORS = {
    "vector": torch.arange(10.0),
    "transposed": torch.arange(12.0).reshape(3, 4).t(),
    "channels_last": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "strided": torch.arange(20.0)[::2],
    "part": torch.arange(6).reshape(2, 3)[:, 1:],
    "expanded": torch.ones(3).expand(5, 3),
    "bfloat16": torch.arange(6).to(torch.bfloat16).reshape(2, 3),
    "float16": torch.arange(6).half(),
    "scalar": torch.tensor(3),
    "empty": torch.empty(0, 3),
    "bool": torch.tensor([True, False]),
    "complex": torch.tensor([1 + 2j, 3]),
    "conjugate": torch.tensor([1 + 2j, 3]).conj(),
    "negative": torch.tensor([1 + 2j]).conj().imag,
    "uint8": torch.arange(256, dtype=torch.uint8),
    "requires_grad": torch.ones(3, requires_grad=True),
    "parameter": torch.nn.Parameter(torch.ones(2, 2)),
    "frozen_parameter": torch.nn.Parameter(torch.ones(2), requires_grad=False),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensor_round_trips(name: str) -> None:
    tensor = TENSORS[name]
    back = round_trip(tensor)
    assert type(back) is type(tensor)
    assert back.dtype == tensor.dtype
    assert back.shape == tensor.shape
    assert torch.equal(back, tensor)
    assert back.requires_grad == tensor.requires_grad
    assert back.is_leaf


@pytest.mark.parametrize("name", ["vector", "transposed", "channels_last", "parameter"])
def test_tensor_keeps_its_strides_and_is_not_copied_to_be_sent(name: str) -> None:
    tensor = TENSORS[name]
    parts = serialize(tensor).parts
    assert round_trip(tensor).stride() == tensor.stride()
    data = tensor.detach()
    before = data.clone()
    data.fill_(7)
    sent = deserialize(memoryview(b"".join(parts)))
    data.copy_(before)
    assert torch.equal(sent, torch.full_like(tensor, 7))


def test_tensor_part_sends_only_its_elements() -> None:
    large = torch.zeros(1_000_000)
    assert serialize(large[:10]).total_bytes < 1000
    assert torch.equal(round_trip(large[:10]), torch.zeros(10))


def test_tensor_can_be_written_to_and_the_bytes_do_not_change() -> None:
    data = serialize(torch.zeros(100)).to_bytes()
    first, second = deserialize(memoryview(data)), deserialize(memoryview(data))
    first += 1
    assert torch.equal(second, torch.zeros(100))
    assert torch.equal(deserialize(memoryview(data)), torch.zeros(100))


def test_tensors_in_containers_keep_identity_and_place() -> None:
    tensor = torch.ones(3)
    back = round_trip({"a": [tensor, tensor], "b": torch.zeros(2)})
    assert back["a"][0] is back["a"][1]
    assert torch.equal(back["b"], torch.zeros(2))


def test_gradient_flows_through_a_received_parameter() -> None:
    parameter = round_trip(torch.nn.Parameter(torch.ones(3)))
    (parameter * 2).sum().backward()
    assert torch.equal(parameter.grad, torch.full((3,), 2.0))


def test_module_round_trips_with_equal_output() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
    given = torch.rand(5, 4)
    assert torch.equal(round_trip(module)(given), module(given))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.eye(3).to_sparse(),
        torch.ones(3, device="meta"),
    ],
    ids=["sparse", "meta"],
)
def test_tensor_of_another_kind_is_pickled_as_torch_does(tensor: Any) -> None:
    back = round_trip(tensor)
    assert back.layout == tensor.layout
    assert back.device == tensor.device
    if tensor.is_sparse:
        assert torch.equal(back.to_dense(), tensor.to_dense())


def test_tensor_with_attributes_keeps_them() -> None:
    tensor = torch.ones(3)
    tensor.note = "kept"
    assert round_trip(tensor).note == "kept"


def test_users_serializer_for_tensors_goes_first_and_ends() -> None:
    register_serializer(torch.Tensor, serializer=lambda t: t.tolist(), deserializer=tuple)
    try:
        assert round_trip(torch.arange(3)) == (0, 1, 2)
    finally:
        deregister_serializer(torch.Tensor)
    assert torch.equal(round_trip(torch.arange(3)), torch.arange(3))


def test_plain_pickle_of_a_tensor_is_torchs() -> None:
    assert torch.equal(pickle.loads(pickle.dumps(torch.ones(3))), torch.ones(3))
