"""What the Redis back end promises beyond the conformance suite: one writer, outages, settings."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import shutil
import socket
import subprocess
import threading

import pytest
from redis import Redis

from skate_gcs import GcsConfig, GcsServer
from skate_gcs.errors import (
    StorageBusyError,
    StorageCorruptError,
    StorageFailedError,
    StorageFullError,
    StorageVersionError,
)
from skate_gcs.redis_for_tests import OwnRedisServer
from skate_gcs.storage import RedisStorage, Write, open_storage, parse_redis_url
from skate_rpc.errors import RpcUnavailableError

TABLES = ("rows",)
TIMEOUT_S = 15.0
FAST = {"lease_s": 2.2}  # twice the pause between signs of life, and a little


def open_as(redis, holder, **options):
    return RedisStorage(parse_redis_url(redis.url), TABLES, holder=holder, **{**FAST, **options})


def put(storage, key, value):
    return storage.commit([Write("rows", key, value)])


def raw(redis):
    return Redis(unix_socket_path=redis.path)


def test_second_opener_is_refused_while_the_first_lives(redis):
    first = open_as(redis, "first")
    with pytest.raises(StorageBusyError, match="'first'"):
        open_as(redis, "second")
    put(first, b"k", b"v").result(TIMEOUT_S)
    first.close()
    second = open_as(redis, "second")
    assert second.scan("rows") == [(b"k", b"v")]
    second.close()


@pytest.mark.invariant("I17")
def test_namesake_takes_over_at_once_and_the_first_can_not_write_any_more(redis):
    first = open_as(redis, "head")
    put(first, b"k", b"1").result(TIMEOUT_S)
    second = open_as(redis, "head")
    put(second, b"k", b"2").result(TIMEOUT_S)
    refusal = put(first, b"k", b"3").exception(TIMEOUT_S)
    assert isinstance(refusal, StorageFailedError)
    assert "'head'" in str(refusal)
    assert "taken it over" in first.failed.result(TIMEOUT_S)
    assert second.scan("rows") == [(b"k", b"2")]
    first.close()
    put(second, b"k", b"4").result(TIMEOUT_S)  # the first one's close took nothing from it
    second.close()


def test_superseded_opener_learns_it_without_writing(redis):
    first = open_as(redis, "head")
    second = open_as(redis, "head")
    assert "taken it over" in first.failed.result(TIMEOUT_S)
    first.close()
    second.close()


def test_opener_that_is_gone_without_a_word_is_replaced_when_its_word_has_run_out(redis):
    first = open_as(redis, "first")
    put(first, b"k", b"v").result(TIMEOUT_S)
    first._idle = lambda connection: None  # it stands still
    second = open_as(redis, "second")
    assert second.scan("rows") == [(b"k", b"v")]
    assert isinstance(put(first, b"k", b"w").exception(TIMEOUT_S), StorageFailedError)
    first.close()
    second.close()


def test_clusters_with_different_prefixes_share_a_server(redis):
    one, other = (
        RedisStorage(parse_redis_url(f"{redis.url}?prefix={name}"), TABLES, holder="h")
        for name in ("one", "other")
    )
    put(one, b"k", b"1").result(TIMEOUT_S)
    assert other.scan("rows") == []
    one.close()
    other.close()


@pytest.mark.invariant("I17")
def test_killed_server_that_comes_back_has_everything_and_nothing_is_stored_twice(redis):
    storage = open_as(redis, "head")
    put(storage, b"before", b"1").result(TIMEOUT_S)
    redis.kill()
    during = put(storage, b"during", b"1")
    assert not during.done()
    redis.start()
    during.result(TIMEOUT_S)
    assert storage.problem() == ""
    assert storage.scan("rows") == [(b"before", b"1"), (b"during", b"1")]
    assert raw(redis).hget("{skate}:fence", "sequence") == b"2"
    storage.close()


@pytest.mark.invariant("I17")
def test_commit_whose_answer_is_lost_counts_once(redis):
    storage = open_as(redis, "head")
    stop = threading.Event()

    def cut_lines():
        client = raw(redis)
        source = random.Random(1)
        while not stop.wait(source.uniform(0.0, 0.01)):
            client.client_kill_filter(_type="normal", skipme=True)

    cutter = threading.Thread(target=cut_lines)
    cutter.start()
    commits = 0
    for number in range(200):
        put(storage, b"k", b"%d" % number).result(TIMEOUT_S)
        commits += 1
    stop.set()
    cutter.join()
    assert storage.scan("rows") == [(b"k", b"199")]
    assert raw(redis).hget("{skate}:fence", "sequence") == b"%d" % commits
    storage.close()


def test_server_that_stays_away_is_named_and_nothing_is_acknowledged_any_more(redis):
    storage = open_as(redis, "head", reconnect_s=0.5)
    redis.kill()
    refusal = put(storage, b"k", b"v").exception(TIMEOUT_S)
    assert isinstance(refusal, StorageFailedError)
    assert "away for 0.5 s" in str(refusal)
    redis.start()
    assert isinstance(put(storage, b"k", b"w").exception(TIMEOUT_S), StorageFailedError)
    storage.close()


def test_server_that_was_never_there_is_named(socket_folder):
    address = parse_redis_url(f"redis+unix://{socket_folder}/absent.sock")
    with pytest.raises(StorageFailedError, match=r"absent\.sock"):
        RedisStorage(address, TABLES, holder="h", open_s=0.2)


@pytest.mark.invariant("I17")
def test_server_that_lost_what_it_acknowledged_is_found_out(socket_folder):
    server = OwnRedisServer(socket_folder, settings="appendonly no")
    server.start()
    storage = open_as(server, "head")
    put(storage, b"k", b"v").result(TIMEOUT_S)
    server.kill()
    server.start()
    refusal = put(storage, b"k", b"w").exception(TIMEOUT_S)
    assert isinstance(refusal, StorageFailedError)
    server.kill()
    storage.close()


@pytest.mark.parametrize(
    ("settings", "warning"),
    [
        ("appendonly no", "last snapshot"),
        ("appendfsync everysec", "last second"),
        ("appendfsync always", ""),
    ],
)
def test_server_that_may_lose_something_is_warned_about(socket_folder, settings, warning, caplog):
    server = OwnRedisServer(socket_folder, settings=settings)
    server.start()
    with caplog.at_level(logging.WARNING, "skate_gcs.storage.redis"):
        open_as(server, "head").close()
    server.kill()
    assert [record.but for record in caplog.records if warning in record.but] == [
        record.but for record in caplog.records
    ]
    assert bool(caplog.records) == bool(warning)


@pytest.mark.invariant("I19")
def test_full_server_refuses_the_batch_whole_and_recovers(redis):
    storage = open_as(redis, "head")
    put(storage, b"a", b"1").result(TIMEOUT_S)
    raw(redis).config_set("maxmemory", "1mb")
    refusal = storage.commit(
        [Write("rows", b"a", b"2"), Write("rows", b"b", b"x" * 1_000_000)]
    ).exception(TIMEOUT_S)
    assert isinstance(refusal, StorageFullError)
    assert storage.scan("rows") == [(b"a", b"1")]
    raw(redis).config_set("maxmemory", "0")
    put(storage, b"a", b"3").result(TIMEOUT_S)
    assert storage.scan("rows") == [(b"a", b"3")]
    storage.close()


@pytest.mark.invariant("I18")
def test_damaged_row_is_named_and_not_used(redis):
    storage = open_as(redis, "head")
    put(storage, b"key", b"the value").result(TIMEOUT_S)
    stored = raw(redis).hget("{skate}:rows", b"key")
    raw(redis).hset("{skate}:rows", b"key", stored.replace(b"the", b"thE"))
    with pytest.raises(StorageCorruptError, match=b"key".hex()):
        storage.scan("rows")
    storage.close()


def test_tables_of_another_schema_are_refused(redis):
    open_as(redis, "head").close()
    raw(redis).hset("{skate}:fence", "schema", 99)
    with pytest.raises(StorageVersionError, match="99"):
        open_as(redis, "head")


def test_password_is_taken_from_its_file_and_a_wrong_one_is_told(socket_folder):
    server = OwnRedisServer(socket_folder, settings="requirepass swordfish")
    server.start()
    path = os.path.join(socket_folder, "password")
    with open(path, "w") as file:
        file.write("swordfish\n")
    open_storage(f"{server.url}?password_file={path}", TABLES, "h").close()
    with pytest.raises(StorageFailedError) as failure:
        open_storage(server.url.replace("://", "://:wrongpass@"), TABLES, "h")
    assert "wrongpass" not in str(failure.value)
    server.kill()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_tls_is_spoken_and_an_unknown_authority_is_refused(socket_folder):
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1",
         "-keyout", f"{socket_folder}/key.pem", "-out", f"{socket_folder}/cert.pem",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"],
        check=True, capture_output=True,
    )  # fmt: skip
    server = OwnRedisServer(
        socket_folder,
        settings=f"tls-port {free_port()}\ntls-cert-file {socket_folder}/cert.pem\n"
        f"tls-key-file {socket_folder}/key.pem\ntls-ca-cert-file {socket_folder}/cert.pem\n"
        "tls-auth-clients no",
    )
    server.start()
    port = raw(server).config_get("tls-port")["tls-port"]
    url = f"rediss://localhost:{port}/0"
    open_storage(f"{url}?ca_file={socket_folder}/cert.pem", TABLES, "h").close()
    with pytest.raises(StorageFailedError, match="certificate"):
        RedisStorage(parse_redis_url(url), TABLES, holder="h", open_s=0.3)
    server.kill()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.invariant("I17", "I19")
def test_gcs_whose_store_is_away_refuses_changes_with_the_reason_and_goes_on_after(
    folder, harness, run, redis
):
    async def main():
        async with harness(storage=redis.url) as gcs:
            await gcs.client.kv.put("n", b"k", b"1")
            redis.kill()
            # The one that is under way when it is found out waits for its own deadline.
            await asyncio.gather(
                gcs.client.kv.put("n", b"k", b"2", timeout_s=0.5), return_exceptions=True
            )
            with pytest.raises(RpcUnavailableError, match="server is away"):
                await gcs.client.kv.put("n", b"other", b"1", timeout_s=0.5)
            redis.start()
            await gcs.client.kv.put("n", b"other", b"2")
            assert await gcs.client.kv.get("n", b"k") == b"2"  # it was in doubt, and came through
            assert await gcs.client.kv.get("n", b"other") == b"2"

    run(main())


@pytest.mark.invariant("I17")
def test_superseded_gcs_stops_and_says_by_whom(folder, harness, run, redis):
    async def main():
        async with harness(storage=redis.url, holder="head") as gcs:
            await gcs.client.kv.put("n", b"k", b"1")
            other = GcsServer(
                GcsConfig(f"unix:{folder}/other.sock", gcs.config.token, redis.url, holder="head")
            )
            await other.start()
            assert "taken it over" in await gcs.server.wait_stopped()
            assert other.cluster_id == gcs.server.cluster_id
            with pytest.raises(RpcUnavailableError, match="taken it over"):
                await gcs.client.kv.get("n", b"k", timeout_s=0.3)
            await other.stop(0)

    run(main())
