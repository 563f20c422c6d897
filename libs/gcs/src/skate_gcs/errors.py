"""The errors of this library."""

from __future__ import annotations

from skate_core_ids import SkateError


class StorageError(SkateError):
    """Base of what a storage back end raises. ``where`` names the file or back end."""

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(f"GCS storage {where}: {problem}")
        self.where = where
        self.problem = problem

    def __reduce__(self) -> tuple[type[StorageError], tuple[str, str]]:
        return type(self), (self.where, self.problem)


class StorageFullError(StorageError):
    """There is no room: the batch was not stored, and a later one may be."""


class StorageFailedError(StorageError):
    """The device failed, so that it is unknown what is stored: nothing is acknowledged any more."""


class StorageCorruptError(StorageError):
    """A stored row is not what was written. Nothing of it is used."""


class StorageVersionError(StorageError):
    """The file was written by a release with another schema."""


class StorageBusyError(StorageError):
    """Another process uses the file: two control services must never share one."""


class StorageClosedError(StorageError):
    """The storage was closed."""


class GcsConfigError(SkateError, ValueError):
    """A setting makes no sense."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"GcsConfig.{field}: {problem}")
        self.field = field
        self.problem = problem

    def __reduce__(self) -> tuple[type[GcsConfigError], tuple[str, str]]:
        return type(self), (self.field, self.problem)
