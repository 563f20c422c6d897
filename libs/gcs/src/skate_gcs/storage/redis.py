"""The back end for a head that may be restarted on another machine: a Redis server.

Each table is a hash, ``<prefix>`` in braces so that all keys of a cluster lie in one slot; each
value carries a checksum. A batch is one Lua script, so it happens whole or not at all. Two control
services never write to one store: see ``redis_scripts``. A newcomer waits until the present
opener's word has run out (``LEASE_S`` after its last sign of life), unless it bears the same name,
which a supervisor gives to the successor of a process that it has seen die.

While the server is away nothing is acknowledged; the connection is tried again for
``RECONNECT_S``, and the batch that was under way is not stored twice. After that, or when the
server came back without something that it had acknowledged, the storage has failed for good.

What an acknowledgement is worth is the server's setting: with ``appendfsync always`` it survives a
power cut of the server; with ``everysec`` a power cut costs up to the last second or two (a kill of
the server costs nothing); without an append-only file a kill costs all since the last snapshot. The
setting is looked up at the start, and less than ``always`` is logged.

Source: SURFACE F3 and 3.3 (redis); RELIABILITY I17.
"""

from __future__ import annotations

import logging
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

from skate_gcs.errors import (
    StorageBusyError,
    StorageCorruptError,
    StorageError,
    StorageFailedError,
    StorageFullError,
    StorageVersionError,
)
from skate_gcs.storage.redis_scripts import COMMIT, RELEASE, RENEW, TAKE
from skate_gcs.storage.redis_url import RedisAddress
from skate_gcs.storage.writer_thread import Batch, Rows, WriterThread

if TYPE_CHECKING:
    import redis as redis_module

_log = logging.getLogger(__name__)

SCHEMA_VERSION: Final = 1
LEASE_S: Final = 3.0
"""How long an opener's word holds without a sign of life."""
RENEW_S: Final = 1.0
RECONNECT_S: Final = 60.0
"""How long a server may be away; as Ray's 120 tries, one each half second."""
RETRY_S: Final = 0.1
CONNECT_TIMEOUT_S: Final = 2.0
CALL_TIMEOUT_S: Final = 5.0
"""A server that does not answer for this long is taken for away, and asked again."""
SCAN_COUNT: Final = 1_000
_CHECKSUM_BYTES: Final = 4

assert RENEW_S * 2 < LEASE_S

_T = TypeVar("_T")


class RedisStorage(WriterThread["redis_module.Redis"]):
    """Tables in hashes of a Redis server."""

    idle_s = RENEW_S

    def __init__(
        self,
        address: RedisAddress,
        tables: Iterable[str],
        *,
        holder: str,
        open_s: float = RECONNECT_S,
        reconnect_s: float = RECONNECT_S,
        lease_s: float = LEASE_S,
    ) -> None:
        """Connect, and take the tables over.

        Args:
            address: Where they are.
            tables: Their names.
            holder: This opener's name. One of the same name is taken for dead.
            open_s: How long the server may be away now.
            reconnect_s: How long it may be away later.
            lease_s: See ``LEASE_S``.

        Raises:
            StorageBusyError: another opener lives.
            StorageVersionError: another release wrote them.
            StorageFailedError: the server can not be reached, or refuses this client.
        """
        import redis  # noqa: PLC0415  an optional extra, and 60 ms for those who do not use it

        self._redis: Any = redis
        self._address = address
        self._holder = holder
        self._wait_s = open_s
        self._reconnect_s = reconnect_s
        self._lease_s = lease_s
        self._fence = self._key("fence")
        self._epoch = 0
        self._sequence = 0
        self._problem = ""
        super().__init__(address.where, tables)

    def problem(self) -> str:
        """See :class:`Storage`."""
        return self._problem

    def _key(self, name: str) -> str:
        return f"{{{self._address.prefix}}}:{name}"

    # ---- in the thread ----

    def _open(self) -> redis_module.Redis:
        connection: redis_module.Redis = self._redis.Redis(
            **self._address.options | {"password": self._address.read_password()},
            socket_connect_timeout=CONNECT_TIMEOUT_S,
            socket_timeout=CALL_TIMEOUT_S,
            single_connection_client=False,
            health_check_interval=0,
            retry=None,
        )
        try:
            self._take(connection)
            self._look_at_durability(connection)
        except BaseException:
            connection.close()
            raise
        self._wait_s = self._reconnect_s
        return connection

    def _take(self, connection: redis_module.Redis) -> None:
        deadline_s = time.monotonic() + self._lease_s + RENEW_S
        arguments = (self._holder, int(self._lease_s * 1000), SCHEMA_VERSION)
        while True:
            found = self._patiently(lambda: self._run_script(connection, TAKE, [], arguments))
            if found[0] == b"taken":
                self._epoch, self._sequence = int(found[1]), int(found[2])
                return
            if found[0] == b"schema":
                raise StorageVersionError(
                    self._where,
                    f"it has schema {found[1].decode()}, this release reads {SCHEMA_VERSION};"
                    " start the release that wrote it, or give another prefix.",
                )
            # Its word runs out by then if it is dead; if it lives, it has renewed it.
            if time.monotonic() >= deadline_s:
                raise StorageBusyError(
                    self._where,
                    f"the control service {found[2].decode()!r} uses it; stop that one first, or"
                    " give another prefix.",
                )
            time.sleep(min(int(found[1]) / 1000 + 0.01, RENEW_S / 2))

    def _look_at_durability(self, connection: redis_module.Redis) -> None:
        try:
            settings: dict[str, str] = {}
            for name in ("appendonly", "appendfsync"):
                found: dict[Any, Any] = connection.config_get(name)
                for key, value in found.items():
                    settings[_text(key)] = _text(value)
        except self._redis.exceptions.ResponseError:
            _log.info("the Redis server does not tell its settings", extra={"where": self._where})
            return
        if settings.get("appendonly") != "yes":
            lost = "a crash of it loses what came after its last snapshot"
        elif settings.get("appendfsync") != "always":
            lost = "a power cut of its machine loses about the last second"
        else:
            return
        _log.warning("the Redis server is not set to keep everything", extra={"but": lost})

    def _write(self, connection: redis_module.Redis, batches: list[Batch]) -> None:
        wanted = self._sequence + 1
        arguments: list[Any] = [self._epoch, int(self._lease_s * 1000), wanted]
        for batch, _ in batches:
            for table, key, value in batch:
                place = self._tables.index(table) + 2  # the fence is the first
                if value is None:
                    arguments += [place, 0, key]
                else:
                    arguments += [place, 1, key, _checksum(key, value) + value]
        self._sign(connection, COMMIT, self._tables, arguments)
        self._sequence = wanted
        self._count(batches)

    def _idle(self, connection: redis_module.Redis) -> None:
        arguments = (self._epoch, int(self._lease_s * 1000), self._sequence)
        self._sign(connection, RENEW, (), arguments)

    def _sign(
        self,
        connection: redis_module.Redis,
        script: str,
        tables: Sequence[str],
        arguments: Sequence[Any],
    ) -> None:
        """Run a script that is refused to all but the last opener."""
        found = self._patiently(lambda: self._run_script(connection, script, tables, arguments))
        if found[0] == b"fenced":
            problem = f"another control service ({_text(found[1])!r}) has taken it over."
            raise StorageFailedError(self._where, problem)
        if found[0] == b"lost":
            problem = (
                "the server lost what it had acknowledged (it was restarted without its data, or"
                " another replica took over); the control service must start again from what is"
                " left. Set appendonly yes and appendfsync always."
            )
            raise StorageFailedError(self._where, problem)

    def _read(self, connection: redis_module.Redis, table: str) -> Rows:
        return sorted(self._patiently(lambda: self._scan_hash(connection, table)).items())

    def _scan_hash(self, connection: redis_module.Redis, table: str) -> dict[bytes, bytes]:
        rows: dict[bytes, bytes] = {}
        for key, stored in connection.hscan_iter(self._key(table), count=SCAN_COUNT):
            checksum, value = stored[:_CHECKSUM_BYTES], stored[_CHECKSUM_BYTES:]
            if _checksum(key, value) != checksum:
                problem = f"the row {key.hex()} of table {table} is damaged."
                raise StorageCorruptError(self._where, problem)
            rows[key] = value
        return rows

    def _close(self, connection: redis_module.Redis) -> None:
        try:
            if self._failure is None:
                self._run_script(connection, RELEASE, (), (self._epoch,))
        except self._redis.exceptions.RedisError as error:
            _log.info("the tables were not handed back", extra={"why": str(error)})  # they lapse
        connection.close()

    def _run_script(
        self,
        connection: redis_module.Redis,
        script: str,
        tables: Sequence[str],
        arguments: Sequence[Any],
    ) -> list[Any]:
        keys = [self._fence, *map(self._key, tables)]
        answer: list[Any] = connection.eval(script, len(keys), *keys, *arguments)
        return answer

    def _patiently(self, call: Callable[[], _T]) -> _T:
        """The outcome of a call that may be repeated, made until the server answers it."""
        errors = self._redis.exceptions
        deadline_s = time.monotonic() + self._wait_s
        while True:
            try:
                outcome = call()
            except errors.AuthenticationError:
                raise
            except (errors.ConnectionError, errors.TimeoutError, errors.BusyLoadingError) as error:
                why = str(error)
                if time.monotonic() >= deadline_s:
                    problem = f"the server has been away for {self._wait_s:g} s ({why})."
                    raise StorageFailedError(self._where, problem) from error
                if self._problem:
                    time.sleep(RETRY_S)
                else:  # often only the line was cut: the first try follows at once
                    _log.warning("the Redis server is away", extra={"why": why})
                self._problem = f"GCS storage {self._where}: the server is away ({why})."
            else:
                if self._problem:
                    _log.warning("the Redis server is back", extra={"where": self._where})
                    self._problem = ""
                return outcome

    def _typed(self, error: Exception) -> StorageError:
        if isinstance(error, StorageError):
            return error
        # MISCONF: it could not write to its disk, and takes nothing until it can.
        if isinstance(error, self._redis.exceptions.OutOfMemoryError) or "MISCONF" in str(error):
            return StorageFullError(self._where, f"the server has no room ({error}).")
        return StorageFailedError(self._where, f"the server refused ({error}).")


def _checksum(key: bytes, value: bytes) -> bytes:
    return zlib.crc32(value, zlib.crc32(key)).to_bytes(_CHECKSUM_BYTES, "big")


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
