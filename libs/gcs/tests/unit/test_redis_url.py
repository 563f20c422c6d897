from __future__ import annotations

import pytest

from skate_gcs.errors import GcsConfigError
from skate_gcs.storage import parse_redis_url
from skate_gcs.storage.redis_url import is_redis


@pytest.mark.parametrize(
    ("setting", "options", "prefix"),
    [
        ("redis://h", {"host": "h", "port": 6379, "db": 0}, "skate"),
        (
            "redis://me:p%40ss@h:7000/3?prefix=blue",
            {"host": "h", "port": 7000, "db": 3, "username": "me", "password": "p@ss"},
            "blue",
        ),
        (
            "rediss://:pw@h/1?ca_file=/ca",
            {"host": "h", "port": 6379, "db": 1, "password": "pw", "ssl": True}
            | {"ssl_ca_certs": "/ca"},
            "skate",
        ),
        ("redis+unix:///run/r.sock?db=2", {"unix_socket_path": "/run/r.sock", "db": 2}, "skate"),
    ],
)
def test_setting_is_taken_apart(setting, options, prefix):
    assert is_redis(setting)
    address = parse_redis_url(setting)
    assert (address.options, address.prefix) == (options, prefix)


def test_place_for_people_has_no_secret():
    assert "hush" not in parse_redis_url("redis://:hush@h:1/2").where


@pytest.mark.parametrize(
    "setting",
    [
        "redis://",
        "redis://h:port",
        "redis://h/zero",
        "redis://h?prefix=a{b}",
        "redis://h?sentinel=1",
        "redis://h?ca_file=/ca",
        "redis+unix://host/path",
        "redis+unix://",
    ],
)
def test_malformed_setting_is_refused_without_its_secret(setting):
    with pytest.raises(GcsConfigError, match="storage"):
        parse_redis_url(setting)


def test_other_settings_are_not_taken_for_redis():
    assert not is_redis("sqlite:/redis")
    assert not is_redis("redis")
