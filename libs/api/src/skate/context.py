"""What ``skate.init`` returns: facts about the session, and its end in a ``with`` statement."""

from __future__ import annotations

import platform
import warnings
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any


class SessionContext(Mapping[str, Any]):
    """A session's addresses. ``with skate.init():`` shuts it down at the end of the block."""

    def __init__(self, address_info: dict[str, Any], version: str) -> None:
        self.address_info = address_info
        self.python_version: str = platform.python_version()
        self.skate_version = version
        self.ray_version = version
        self.ray_commit = ""
        self.dashboard_url = ""

    def disconnect(self) -> None:
        """End the session; nothing happens when another one is current."""
        from skate.session import end_session  # noqa: PLC0415 - the session imports this module

        end_session(self)

    def __getitem__(self, key: str) -> Any:
        warnings.warn(
            f"context[{key!r}] is an older way to write context.address_info[{key!r}].",
            DeprecationWarning,
            stacklevel=2,
        )
        return self.address_info[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.address_info)

    def __len__(self) -> int:
        return len(self.address_info)

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        return (
            f"SessionContext(address={self.address_info.get('address')!r},"
            f" session_dir={self.address_info.get('session_dir')!r})"
        )

    def __enter__(self) -> SessionContext:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.disconnect()
