"""Log files of the daemons."""

from __future__ import annotations

import json
import logging
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skate_telemetry.context import TraceContext, use_trace
from skate_telemetry.logs import (
    KeyValueFormatter,
    PrivateRotatingFileHandler,
    configure_logging,
    format_value,
)


@pytest.fixture(autouse=True)
def root_logger_as_before() -> Iterator[None]:
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    logging.captureWarnings(False)
    root.setLevel(level)
    for handler in [handler for handler in root.handlers if handler not in handlers]:
        root.removeHandler(handler)
        handler.close()


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def test_record_becomes_one_key_value_line(tmp_path: Path) -> None:
    path = tmp_path / "node.log"
    configure_logging("node", str(path))
    logging.getLogger("skate_raylet.leases").info(
        "lease granted", extra={"lease": "ab12", "waited_s": 0.25, "name of user": "x"}
    )
    (line,) = lines(path)
    time, _, rest = line.partition(" ")
    assert time.startswith("time=2")
    assert time.endswith("Z")
    assert rest == (
        "level=info component=node logger=skate_raylet.leases"
        ' event="lease granted" lease=ab12 waited_s=0.25'
    )


@pytest.mark.parametrize("weapon", ["a\nlevel=error", "\x1b]0;x\x07", 'say "hi"', "", "ü\u2028"])
def test_record_hostile_value_stays_one_printable_line(tmp_path: Path, weapon: str) -> None:
    path = tmp_path / "node.log"
    configure_logging("node", str(path))
    logging.getLogger("x").warning("%s", weapon, extra={"field": weapon})
    content = path.read_text(encoding="utf-8")
    assert content.count("\n") == 1
    assert content.removesuffix("\n").isprintable()
    assert f"field={json.dumps(weapon)}" in content


@given(st.text())
def test_format_value_is_bare_or_reads_back_as_json(text: str) -> None:
    formatted = format_value(text)
    assert formatted.isprintable()
    if formatted.startswith('"'):
        assert json.loads(formatted) == text
    else:
        assert formatted == text
        assert " " not in formatted
        assert "=" not in formatted


def test_format_value_very_long_text_is_cut() -> None:
    assert len(format_value("x" * 10_000_000)) < 20_000


def test_record_exception_stays_on_its_line(tmp_path: Path) -> None:
    path = tmp_path / "node.log"
    configure_logging("node", str(path))
    try:
        raise RuntimeError("first\nsecond")
    except RuntimeError:
        logging.getLogger("x").exception("failed", stack_info=True)
    (line,) = lines(path)
    assert 'exception="Traceback (most recent call last):\\n' in line
    assert "RuntimeError: first\\nsecond" in line
    assert 'stack="Stack (most recent call last):' in line


def test_record_in_a_trace_names_it(tmp_path: Path) -> None:
    path = tmp_path / "node.log"
    configure_logging("node", str(path))
    with use_trace(TraceContext("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")):
        logging.getLogger("x").info("hello")
    assert "trace_id=0af7651916cd43dd8448eb211c80319c" in lines(path)[0]


def test_level_decides_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "node.log"
    configure_logging("node", str(path), "warning")
    logging.getLogger("x").info("not this")
    logging.getLogger("x").error("but this")
    assert [line.partition("event=")[2] for line in lines(path)] == ['"but this"']


def test_unknown_level_raises_and_leaves_no_handler(tmp_path: Path) -> None:
    before = list(logging.getLogger().handlers)
    with pytest.raises(ValueError, match="LOUD"):
        configure_logging("node", str(tmp_path / "node.log"), "loud")
    assert logging.getLogger().handlers == before


def test_second_call_moves_to_the_new_file_and_keeps_foreign_handlers(tmp_path: Path) -> None:
    foreign = logging.NullHandler()
    logging.getLogger().addHandler(foreign)
    configure_logging("node", str(tmp_path / "a.log"))
    configure_logging("node", str(tmp_path / "b.log"))
    logging.getLogger("x").info("hello")
    assert lines(tmp_path / "a.log") == []
    assert len(lines(tmp_path / "b.log")) == 1
    assert foreign in logging.getLogger().handlers


def test_file_is_rotated_at_its_size_and_old_ones_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "node.log"
    configure_logging("node", str(path), bytes_max=2_000, backups_max=2)
    for index in range(200):
        logging.getLogger("x").info("line %d", index)
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == ["node.log", "node.log.1", "node.log.2"]
    assert all(file.stat().st_size <= 2_000 for file in tmp_path.iterdir())
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o600}
    assert 'event="line 199"' in lines(path)[-1]


def test_file_that_is_a_link_is_refused(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "node.log").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic link"):
        configure_logging("node", str(tmp_path / "node.log"))
    assert victim.read_text() == "precious"


def test_python_warnings_are_logged(tmp_path: Path) -> None:
    path = tmp_path / "node.log"
    configure_logging("node", str(path))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        logging.captureWarnings(True)
        warnings.warn("old ways", UserWarning, stacklevel=1)
        logging.captureWarnings(False)
    assert "logger=py.warnings" in lines(path)[0]
    assert "old ways" in lines(path)[0]


def test_handler_and_formatter_work_without_the_root_logger(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    handler = PrivateRotatingFileHandler(path)
    handler.setFormatter(KeyValueFormatter("zygote"))
    logger = logging.Logger("alone")  # noqa: LOG001  (one that nothing else knows)
    logger.addHandler(handler)
    logger.error("hello")
    handler.close()
    assert "component=zygote" in lines(path)[0]
