"""Imported by workers only, and for Ray itself."""

import ray
from ray.exceptions import RayError


def describe():
    return [ray.get_runtime_context().get_task_name(), issubclass(RayError, Exception)]
