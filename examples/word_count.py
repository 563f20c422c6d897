"""Count the identifiers in the source of the running Python's standard library, in parallel.

    python examples/word_count.py                  with tasks and an actor, on a local cluster
    python examples/word_count.py --sequential     the same numbers in one process, no cluster
    python examples/word_count.py --directory src  over another tree

How the work is laid out::

    files, in batches
       |      |      |
    count_files ... each      map: a task a batch  ------->  Progress, an actor
       |      |      |
    merge_tallies             reduce: FAN_IN results a task, until one is left
          |
    the ten commonest identifiers

The results of the map tasks never pass through this process: a reduce task takes references, and
the cluster hands it the values.
"""

from __future__ import annotations

import argparse
import keyword
import re
import sys
import sysconfig
import time
from collections import Counter
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import skate

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

BATCH_BYTES = 512 * 1024  # source text of one map task: long enough to make its dispatch cheap
FAN_IN = 8  # tallies that one reduce task merges
REFRESH_S = 0.1  # between two looks at the progress
LAST_REPORTS_S = 5.0  # bound on waiting for progress reports that are still on their way
BAR_CELLS = 30
SHOWN = 10

# Comments, strings and numbers are matched so that nothing inside them counts.
_TOKEN = re.compile(
    r"""\#[^\n]*
    | [rRbBuUfF]{0,2} (?: \"{3} .*? \"{3} | '{3} .*? '{3}
                        | " (?: \\. | [^"\\\n] )* " | ' (?: \\. | [^'\\\n] )* ' )
    | \d [\w.]*
    | ( [^\W\d] \w* )""",
    re.VERBOSE | re.DOTALL,
)
_KEYWORDS = frozenset(keyword.kwlist)


class Tally(NamedTuple):
    """What was found in some files."""

    files: int
    size_bytes: int
    identifiers: Counter[str]


def list_sources(directory: Path | None = None) -> list[Path]:
    """Every ``.py`` file of the standard library (or of a directory), in a fixed order."""
    root = directory or Path(sysconfig.get_path("stdlib"))
    installed = {"site-packages", "dist-packages"}  # what was added to this Python is left out
    return sorted(
        path
        for path in root.rglob("*.py")
        if path.is_file() and not installed & set(path.relative_to(root).parts)
    )


def make_batches(files: Iterable[Path], batch_bytes: int = BATCH_BYTES) -> list[list[str]]:
    """Split files, in order, into batches of about ``batch_bytes``; a large file stands alone."""
    batches: list[list[str]] = []
    filled = batch_bytes
    for path in files:
        size_bytes = path.stat().st_size
        if filled + size_bytes > batch_bytes:
            batches.append([])
            filled = 0
        batches[-1].append(str(path))
        filled += size_bytes
    return batches


def count_identifiers(source: str) -> Counter[str]:
    """How often each identifier stands in Python source, outside strings and comments."""
    names = Counter(match for match in _TOKEN.findall(source) if match)
    for word in _KEYWORDS & names.keys():
        del names[word]
    return names


def count_batch(paths: Iterable[str]) -> Tally:
    """The tally of some files. A byte that is not UTF-8 is read as a replacement character."""
    files, size_bytes, identifiers = 0, 0, Counter[str]()
    for path in paths:
        content = Path(path).read_bytes()
        files += 1
        size_bytes += len(content)
        identifiers.update(count_identifiers(content.decode("utf-8", "replace")))
    return Tally(files, size_bytes, identifiers)


def merge(tallies: Iterable[Tally]) -> Tally:
    """The sum of some tallies."""
    files, size_bytes, identifiers = 0, 0, Counter[str]()
    for tally in tallies:
        files += tally.files
        size_bytes += tally.size_bytes
        identifiers.update(tally.identifiers)
    return Tally(files, size_bytes, identifiers)


@skate.remote
class Progress:
    """Counts the files that are done; every map task reports to it."""

    def __init__(self) -> None:
        self._files = 0

    def add(self, files: int) -> None:
        """Count some more files."""
        self._files += files

    def files(self) -> int:
        """Files done so far."""
        return self._files


@skate.remote
def count_files(paths: list[str], progress: Any) -> Tally:
    """Map: the tally of one batch."""
    tally = count_batch(paths)
    progress.add.remote(tally.files)
    return tally


@skate.remote
def merge_tallies(*tallies: Tally) -> Tally:
    """Reduce: the sum of up to ``FAN_IN`` tallies."""
    return merge(tallies)


def count_in_parallel(batches: Sequence[list[str]], bar: ProgressBar) -> Tally:
    """Count with a task for each batch and a tree of merging tasks. Needs ``skate.init()``."""
    # mypy takes a decorated class for what it was: https://github.com/python/mypy/issues/3135
    progress = Progress.remote()  # type: ignore[attr-defined]
    tallies = [count_files.remote(paths, progress) for paths in batches]
    while len(tallies) > 1:
        tallies = [
            merge_tallies.remote(*tallies[start : start + FAN_IN])
            for start in range(0, len(tallies), FAN_IN)
        ]
    if not tallies:
        return merge([])
    pending = tallies
    while pending:
        _, pending = skate.wait(tallies, timeout=REFRESH_S)
        bar.show(skate.get(progress.files.remote()))
    # A report may arrive after the result that it accompanies.
    deadline = time.monotonic() + LAST_REPORTS_S
    while bar.done < bar.total and time.monotonic() < deadline:
        bar.show(skate.get(progress.files.remote()))
    result: Tally = skate.get(tallies[0])
    return result


def count_sequentially(batches: Iterable[list[str]], bar: ProgressBar) -> Tally:
    """The same numbers, counted in this process."""
    total = merge([])
    for paths in batches:
        total = merge([total, count_batch(paths)])
        bar.show(total.files)
    return total


class ProgressBar:
    """Files done, on a terminal as a bar that is drawn over, elsewhere as a line a quarter."""

    def __init__(self, total: int, stream: IO[str]) -> None:
        self.total = total
        self.done = 0
        self._stream = stream
        self._is_terminal = stream.isatty()
        self._quarters = 0

    def show(self, done: int) -> None:
        """Show that ``done`` of the files are done."""
        self.done = done
        share = done / self.total if self.total else 1.0
        text = f"{done}/{self.total} files"
        if self._is_terminal:
            cells = int(share * BAR_CELLS)
            bar = "#" * cells + "." * (BAR_CELLS - cells)
            self._stream.write(f"\r[{bar}] {share:4.0%} {text}")
        elif int(share * 4) > self._quarters:
            self._quarters = int(share * 4)
            self._stream.write(f"{share:4.0%} {text}\n")
        self._stream.flush()

    def close(self) -> None:
        """Leave the terminal at the start of a line."""
        if self._is_terminal:
            self._stream.write("\n")
            self._stream.flush()


def describe(tally: Tally, elapsed_s: float) -> str:
    """The ten commonest identifiers and the throughput, as text."""
    occurrences = tally.identifiers.total()
    # Equally frequent names are shown in alphabetical order, whatever order they came in.
    ranked = sorted(tally.identifiers.items(), key=lambda item: (-item[1], item[0]))[:SHOWN]
    lines = [f"{count:>9,}  {name}" for name, count in ranked]
    rate_s = max(elapsed_s, 1e-9)
    lines += [
        "",
        (
            f"{tally.files:,} files, {tally.size_bytes / 1e6:.1f} MB, {occurrences:,} identifiers"
            f" ({len(tally.identifiers):,} different) in {elapsed_s:.2f} s"
        ),
        (
            f"{tally.files / rate_s:,.0f} files/s, {tally.size_bytes / 1e6 / rate_s:.1f} MB/s,"
            f" {occurrences / rate_s:,.0f} identifiers/s"
        ),
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Count and print. Returns the exit status."""
    parser = argparse.ArgumentParser(description="Count the identifiers of the standard library.")
    parser.add_argument("--sequential", action="store_true", help="one process, no cluster")
    parser.add_argument("--directory", type=Path, help="count another tree")
    parser.add_argument("--batch-bytes", type=int, default=BATCH_BYTES, help="text of one task")
    options = parser.parse_args(arguments)
    files = list_sources(options.directory)
    bar = ProgressBar(len(files), sys.stderr)
    if not options.sequential:
        skate.init()
    started = time.monotonic()
    batches = make_batches(files, options.batch_bytes)
    count = count_sequentially if options.sequential else count_in_parallel
    tally = count(batches, bar)
    elapsed_s = time.monotonic() - started
    bar.close()
    print(describe(tally, elapsed_s))
    if not options.sequential:
        skate.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
