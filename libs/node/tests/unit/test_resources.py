from __future__ import annotations

import os
from pathlib import Path

import pytest

from skate_node.gpus import Gpus
from skate_node.options import MINIMUM_OBJECT_STORE_BYTES, NodeOptions
from skate_node.resources import ResourceDetector, node_resources, store_capacity_bytes

GIB = 1 << 30


def machine(root: Path, files: dict[str, str], affinity: int = 8) -> ResourceDetector:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return ResourceDetector(str(root), affinity)


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({}, 8),
        ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/b/cpu.max": "250000 100000"}, 2),
        ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/cpu.max": "300000 100000"}, 3),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "50000 100000"}, 1),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"}, 8),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "9900000 100000"}, 8),
        (
            {
                "proc/self/cgroup": "3:cpu,cpuacct:/box\n1:memory:/",
                "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": "400000",
                "sys/fs/cgroup/cpu/box/cpu.cfs_period_us": "100000",
            },
            4,
        ),
        (
            {
                "proc/self/cgroup": "3:cpu:/",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            8,
        ),
    ],
)
def test_cpu_count_with_quota_is_the_smaller_of_quota_and_affinity(
    tmp_path: Path, files: dict[str, str], cpus: int
) -> None:
    assert machine(tmp_path, files).cpu_count() == cpus


def test_available_bytes_in_a_cgroup_counts_its_limit_without_page_cache(tmp_path: Path) -> None:
    detector = machine(
        tmp_path,
        {
            "proc/meminfo": "MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\n",
            "proc/self/cgroup": "0::/box",
            "sys/fs/cgroup/box/memory.max": str(2 * GIB),
            "sys/fs/cgroup/box/memory.current": str(GIB),
            "sys/fs/cgroup/box/memory.stat": f"anon 5\ninactive_file {GIB // 2}\n",
        },
    )
    assert detector.available_bytes() == 2 * GIB - GIB // 2


def test_available_bytes_without_a_limit_is_the_machines(tmp_path: Path) -> None:
    detector = machine(
        tmp_path,
        {
            "proc/meminfo": "MemAvailable: 1024 kB\n",
            "proc/self/cgroup": "4:memory:/",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
        },
    )
    assert detector.available_bytes() == 1024 * 1024


@pytest.mark.parametrize(
    ("visible", "gpus"), [(None, 2), ("0", 1), ("0,1,5", 2), ("", 0), ("-1", 0), ("0,-1,1", 1)]
)
def test_gpu_count_follows_visible_devices(tmp_path: Path, visible: str | None, gpus: int) -> None:
    detector = machine(
        tmp_path,
        {f"proc/driver/nvidia/gpus/{bus}/information": "" for bus in ("0000:01", "0000:02")},
    )
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert detector.gpus(environment) == Gpus(gpus)


def test_store_capacity_default_is_a_share_with_a_floor() -> None:
    assert store_capacity_bytes(NodeOptions(), 10 * GIB) == 3 * GIB
    assert store_capacity_bytes(NodeOptions(), 1024) == MINIMUM_OBJECT_STORE_BYTES
    assert store_capacity_bytes(NodeOptions(object_store_memory=100 << 20), GIB) == 100 << 20


def totals(options: NodeOptions, environment: dict[str, str]) -> dict[str, float]:
    return node_resources(
        options,
        ip_address="10.0.0.5",
        capacity_bytes=GIB,
        available_bytes=10 * GIB,
        detector=ResourceDetector("/nonexistent", 4),
        environment=environment,
    )


def test_node_resources_detected_and_given_amounts_combine() -> None:
    assert totals(NodeOptions(num_gpus=0.5, resources={"disk": 3}), {}) == {
        "CPU": 4,
        "GPU": 0.5,
        "memory": 7 * GIB,
        "object_store_memory": GIB,
        "disk": 3,
        "node:10.0.0.5": 1.0,
        "node:__internal_head__": 1.0,
    }


def test_node_resources_kind_of_gpu_is_a_resource(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ResourceDetector, "gpus", lambda self, environment: Gpus(2, "H100"))
    assert totals(NodeOptions(), {})["accelerator_type:H100"] == 1.0
    assert totals(NodeOptions(), {})["GPU"] == 2
    assert "accelerator_type:H100" not in totals(NodeOptions(num_gpus=1), {})


def test_node_resources_zero_cpus_leaves_the_resource_out() -> None:
    assert "CPU" not in totals(NodeOptions(num_cpus=0), {})


def test_node_resources_of_a_joining_node_lack_the_head_mark() -> None:
    options = NodeOptions(is_head=False, gcs_address="h:1", token="t" * 16)
    assert "node:__internal_head__" not in totals(options, {})


def test_node_resources_override_variable_wins() -> None:
    found = totals(NodeOptions(num_cpus=2), {"SKATE_OVERRIDE_RESOURCES": '{"CPU": 7, "x": 1}'})
    assert (found["CPU"], found["x"]) == (7, 1)


@pytest.mark.parametrize("text", ["[]", "nonsense", '{"CPU": "x"}', "3"])
def test_node_resources_malformed_override_raises_naming_it(text: str) -> None:
    with pytest.raises(ValueError, match="SKATE_OVERRIDE_RESOURCES"):
        totals(NodeOptions(), {"SKATE_OVERRIDE_RESOURCES": text})


def test_cpu_count_on_this_machine_is_within_affinity() -> None:
    assert 1 <= ResourceDetector().cpu_count() <= len(os.sched_getaffinity(0))
