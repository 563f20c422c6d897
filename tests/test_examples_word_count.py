from __future__ import annotations

import bisect
import heapq
import io
import keyword
import queue
import re
import tokenize
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from examples import word_count

EXAMPLE = Path(word_count.__file__)

SOURCE = r'''
import os  # os again, os
class Thing:
    """A Thing with "quotes" and self."""
    size = 0x1F + 10e5 + 1.e5
    text = r"\\" + f'{size}' + b"it's" + 'a\'b'
    def size_of(self): return self.size
'''


def quiet_bar(total: int) -> word_count.ProgressBar:
    return word_count.ProgressBar(total, io.StringIO())


def write_sources(folder: Path, count: int) -> list[Path]:
    files = [folder / f"module_{number:02}.py" for number in range(count)]
    for number, path in enumerate(files):
        path.write_text(f"shared = name_{number} = {number}  # shared\n" * (number + 1), "utf-8")
    return files


def test_identifiers_inside_comments_and_strings_are_not_counted() -> None:
    assert word_count.count_identifiers(SOURCE) == {
        "os": 1,
        "Thing": 1,
        "size": 2,
        "text": 1,
        "size_of": 1,
        "self": 2,
    }


@pytest.mark.parametrize("module", [bisect, heapq, queue], ids=lambda module: module.__name__)
def test_identifiers_of_a_module_are_those_that_the_tokenizer_finds(module: Any) -> None:
    source = Path(module.__file__).read_text("utf-8")
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    expected = Counter(
        token.string
        for token in tokens
        if token.type == tokenize.NAME and not keyword.iskeyword(token.string)
    )
    assert word_count.count_identifiers(source) == expected


def test_batches_hold_every_file_once_and_in_order(tmp_path: Path) -> None:
    files = write_sources(tmp_path, 20)
    batches = word_count.make_batches(files, batch_bytes=500)
    assert [path for batch in batches for path in batch] == [str(path) for path in files]
    assert len(batches) > 1
    for batch in batches:
        assert len(batch) == 1 or sum(Path(path).stat().st_size for path in batch) <= 500


def test_sources_of_the_standard_library_leave_out_installed_packages() -> None:
    files = word_count.list_sources()
    assert Path(tokenize.__file__) in files
    assert not [path for path in files if "site-packages" in path.parts]


def test_merged_tallies_equal_the_tally_of_all_files(tmp_path: Path) -> None:
    files = [str(path) for path in write_sources(tmp_path, 7)]
    whole = word_count.count_batch(files)
    assert whole.identifiers["shared"] == 28
    assert word_count.merge(word_count.count_batch([path]) for path in files) == whole


def test_progress_off_a_terminal_is_one_plain_line_a_quarter() -> None:
    stream = io.StringIO()
    bar = word_count.ProgressBar(8, stream)
    for done in range(9):
        bar.show(done)
    bar.close()
    assert re.findall(r"\d+%", stream.getvalue()) == ["25%", "50%", "75%", "100%"]
    assert "\r" not in stream.getvalue()


def test_progress_on_a_terminal_is_drawn_over(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True)
    bar = word_count.ProgressBar(2, stream)
    bar.show(1)
    bar.show(2)
    bar.close()
    first, second = stream.getvalue().removesuffix("\n").split("\r")[1:]
    assert "50%" in first
    assert second.startswith("[" + "#" * word_count.BAR_CELLS + "]")


def test_report_ranks_equal_counts_by_name() -> None:
    names = Counter("zyxwvutsrqp")
    names["z"] = 2
    shown = word_count.describe(word_count.Tally(1, 10, names), elapsed_s=1.0).splitlines()
    assert [line.split()[1] for line in shown[:10]] == list("zpqrstuvwx")


def test_parallel_count_of_the_standard_library_equals_the_sequential_one(cluster: Any) -> None:
    files = word_count.list_sources()
    batches = word_count.make_batches(files)
    bar = quiet_bar(len(files))
    found = word_count.count_in_parallel(batches, bar)
    assert found == word_count.count_sequentially(batches, quiet_bar(len(files)))
    assert bar.done == found.files == len(files)


def test_parallel_count_of_nothing_is_nothing(cluster: Any) -> None:
    assert word_count.count_in_parallel([], quiet_bar(0)) == word_count.merge([])


def test_word_count_script_prints_ten_names_and_the_throughput(
    run_script: Any, tmp_path: Path
) -> None:
    write_sources(tmp_path, 12)
    done = run_script(EXAMPLE, "--directory", str(tmp_path), "--batch-bytes", "400")
    assert done.returncode == 0, done.stderr
    *names, _, counted, rate = done.stdout.splitlines()
    assert names[0].split() == ["78", "shared"]
    assert len(names) == 10
    assert counted.startswith("12 files, ")
    assert re.search(r"files/s, .* MB/s, .* identifiers/s$", rate)
    assert "100% 12/12 files" in done.stderr


def test_word_count_script_run_sequentially_prints_the_same_names(
    run_script: Any, tmp_path: Path
) -> None:
    write_sources(tmp_path, 12)
    parallel = run_script(EXAMPLE, "--directory", str(tmp_path))
    sequential = run_script(EXAMPLE, "--directory", str(tmp_path), "--sequential")
    assert sequential.stdout.splitlines()[:10] == parallel.stdout.splitlines()[:10]
