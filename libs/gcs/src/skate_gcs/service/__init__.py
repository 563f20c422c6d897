"""The GCS's shell: gRPC in and out, the storage, and the one loop that feeds the machine."""

from __future__ import annotations

from skate_gcs.service.server import GcsServer, GcsStatistics

__all__ = ["GcsServer", "GcsStatistics"]
