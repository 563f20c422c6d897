"""Every limit of the store, in one place, and the relations between them."""

from __future__ import annotations

ALIGNMENT_BYTES = 64
"""Start of every object: a cache line, and what AVX-512 loads and numpy like."""

CHUNK_BYTES = 2 << 20
"""Granularity at which arena pages are committed and given back."""

COMMIT_STEP_BYTES = 32 << 20
"""One call to ``fallocate``: about 10 ms, so that nothing queues behind a long one."""

LATE_STEP_BYTES = 16 << 20
"""Pages that are committed at a time for an object that is being written meanwhile."""

LATE_PAGES_MIN_BYTES = 32 << 20
"""From here a put writes while pages are committed; below, the turns cost more than they save."""

LATE_REQUESTS_MAX = 64
"""Requests for pages of one object that may wait at a time."""

COMMIT_AHEAD_MIN_BYTES = 64 << 20
"""Committed and free at the end of the used part, even in an idle store."""

COMMIT_AHEAD_MAX_BYTES = 512 << 20
"""Never more than this is committed on speculation; between the two it follows what is in use."""

TRIM_IDLE_S = 10.0
"""A store in which nothing was created or freed for this long gives its free pages back."""

ID_BYTES_MAX = 255
OWNER_BYTES_MAX = 255
"""Ids and owner tags carry a one-byte length on the wire."""

FRAME_BYTES_MAX = 1 << 20
"""The longest frame either side accepts; a longer one closes the connection."""

IDS_PER_FRAME_MAX = 2048
"""Ids that a client puts into one frame; longer lists are split."""

RELEASES_PER_FRAME_MAX = 16384
"""Pins that a client drops in one frame; longer lists are split."""

OUTPUT_BYTES_MAX = 16 << 20
"""Replies queued for a client that does not read them; past this it is disconnected."""

REQUESTS_PER_CLIENT_MAX = 4096
"""Requests of one client that may wait in the server at a time; past this it is disconnected."""

CONNECTIONS_MAX = 4096
UNAUTHENTICATED_MAX = 64
"""Connections that have not proved themselves; further ones are refused until these end."""

HANDSHAKE_TIMEOUT_S = 5.0
"""A connection that has not been admitted after this long is closed."""

HANDSHAKE_BYTES_MAX = 4096
"""Bytes accepted from a connection before it is admitted."""

HOLDERS_MAX = 10
"""The biggest holders that a refused create names."""

NOTE_BYTES_MAX = 200
"""What a creator may say about an object, UTF-8; the rest is cut off."""

CREATE_WAIT_S = 10.0
"""A create that says nothing else waits this long at most, and only for room by spilling."""

SPILL_THRESHOLD = 0.8
SPILL_BATCH_BYTES = 100 << 20
SPILL_FUSE_MAX = 2000
SPILL_DISK_FULL_FRACTION = 0.95
"""Defaults of :class:`~skate_object_store.SpillConfig`, which says why."""

SPILL_CHUNK_BYTES = 4 << 20
"""Bytes that move between arena and disk at a time: they stay in a processor cache meanwhile."""

SPILL_RETRY_S = 1.0
"""After a write that failed, the next is tried this much later, or when a file was deleted."""

SPILL_CLOSE_S = 5.0
"""A server that closes waits this long for a disk that does not answer."""

RESTORE_WAIT_S = 10.0
"""A restore that has found no room in memory by then fails."""

RESTORE_ANSWER_S = 1.0
"""A get of objects that are being restored is answered at least this often, with those found."""

RESTORE_MAX_S = 60.0
"""A client waits this much longer than it was asked to for objects that are being restored."""

LOST_KEPT_MAX = 1000
"""Unreadable objects that are remembered as such."""

RELEASE_LINGER_S = 0.001
"""Dropped pins are gathered for this long, unless a request leaves earlier and takes them along."""

assert IDS_PER_FRAME_MAX * (ID_BYTES_MAX + 1) + 64 <= FRAME_BYTES_MAX
assert RELEASES_PER_FRAME_MAX * 12 + 64 <= FRAME_BYTES_MAX
assert COMMIT_STEP_BYTES % CHUNK_BYTES == 0
assert LATE_STEP_BYTES % CHUNK_BYTES == 0
assert LATE_STEP_BYTES <= LATE_PAGES_MIN_BYTES
assert COMMIT_AHEAD_MIN_BYTES <= COMMIT_AHEAD_MAX_BYTES
assert HANDSHAKE_BYTES_MAX <= FRAME_BYTES_MAX
assert RESTORE_ANSWER_S < RESTORE_WAIT_S < RESTORE_MAX_S
assert NOTE_BYTES_MAX <= 255
