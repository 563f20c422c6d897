"""Limits and timing of the control plane's gRPC connections, for both ends.

One place, because the two ends must agree: a server closes a connection whose client sends
keepalive pings faster than the server permits.
"""

from __future__ import annotations

MESSAGE_BYTES_MAX = 512 * 1024 * 1024
"""Largest message in either direction. Only KV values come near it (function blobs are limited to
100 MB where they are made); gRPC has one limit per connection, and only authenticated peers can
use it: a server reads no message of a call before the token was checked."""

KV_VALUE_BYTES_MAX = MESSAGE_BYTES_MAX - 1024 * 1024
"""Largest KV value: a message less room for namespace and key."""

CONCURRENT_CALLS_MAX = 20_000
"""Calls that a server has open at a time; more are refused with RESOURCE_EXHAUSTED. Each node of a
cluster holds one subscription open, so it must exceed the number of nodes (10 000)."""

STREAMS_PER_CONNECTION_MAX = 1_000
"""Calls that one connection has open at a time; the client queues more."""

HANDSHAKE_TIMEOUT_S = 5.0
"""A connection that has not completed the HTTP/2 preface by then is closed."""

IDLE_CONNECTION_S = 300.0
"""A connection without any call for this long is closed; clients reconnect by themselves."""

KEEPALIVE_INTERVAL_S = 20.0
"""A client pings a silent connection after this time."""

KEEPALIVE_TIMEOUT_S = 10.0
"""A ping without answer for this long ends the connection: its calls fail with UNAVAILABLE."""

PING_INTERVAL_PERMITTED_S = 10.0
"""A server ends a connection that pings more often than this."""

RECONNECT_BACKOFF_FIRST_S = 0.1
RECONNECT_BACKOFF_MAX_S = 2.0
CONNECT_TIMEOUT_S = 5.0

assert PING_INTERVAL_PERMITTED_S < KEEPALIVE_INTERVAL_S
assert RECONNECT_BACKOFF_FIRST_S < RECONNECT_BACKOFF_MAX_S <= CONNECT_TIMEOUT_S


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_concurrent_streams", STREAMS_PER_CONNECTION_MAX),
    ("grpc.server_handshake_timeout_ms", _ms(HANDSHAKE_TIMEOUT_S)),
    ("grpc.max_connection_idle_ms", _ms(IDLE_CONNECTION_S)),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", _ms(PING_INTERVAL_PERMITTED_S)),
    # Without this a second server on the port would silently take every other connection.
    ("grpc.so_reuseport", 0),
)

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.keepalive_time_ms", _ms(KEEPALIVE_INTERVAL_S)),
    ("grpc.keepalive_timeout_ms", _ms(KEEPALIVE_TIMEOUT_S)),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", _ms(RECONNECT_BACKOFF_FIRST_S)),
    ("grpc.max_reconnect_backoff_ms", _ms(RECONNECT_BACKOFF_MAX_S)),
    ("grpc.min_reconnect_backoff_ms", _ms(CONNECT_TIMEOUT_S)),  # in fact the connect timeout
    # A proxy of the environment is for the world outside; it must not see the cluster's token.
    ("grpc.enable_http_proxy", 0),
    ("grpc.service_config_disable_resolution", 1),
    # Channels of one process to one target do not share a connection and its backoff.
    ("grpc.use_local_subchannel_pool", 1),
)
