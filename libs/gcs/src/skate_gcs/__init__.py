"""Skate's global control service: a cluster's durable tables behind gRPC."""

from __future__ import annotations

from skate_gcs.config import GcsConfig
from skate_gcs.errors import (
    GcsConfigError,
    StorageBusyError,
    StorageClosedError,
    StorageCorruptError,
    StorageError,
    StorageFailedError,
    StorageFullError,
    StorageVersionError,
)
from skate_gcs.machine.limits import GcsLimits
from skate_gcs.service import GcsServer, GcsStatistics

__all__ = [
    "GcsConfig",
    "GcsConfigError",
    "GcsLimits",
    "GcsServer",
    "GcsStatistics",
    "StorageBusyError",
    "StorageClosedError",
    "StorageCorruptError",
    "StorageError",
    "StorageFailedError",
    "StorageFullError",
    "StorageVersionError",
]
