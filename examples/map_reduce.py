"""Map-reduce with a shuffle: an index of which documents each word stands in.

    python examples/map_reduce.py

    map (a task a document)          ->  one return for each partition of the words
    reduce (a task a partition)      <-  that return of every map task

The parts go from the map tasks to the reduce tasks directly. Source: Dean and Ghemawat,
"MapReduce: Simplified Data Processing on Large Clusters", 2004.
"""

from __future__ import annotations

import re
import zlib

import skate

PARTITIONS = 3


@skate.remote(num_returns=PARTITIONS)
def map_document(name, text):
    """The words of a document, by partition."""
    parts = [{} for _ in range(PARTITIONS)]
    for place, word in enumerate(re.findall(r"\w+", text.lower())):
        parts[zlib.crc32(word.encode()) % PARTITIONS].setdefault(word, []).append((name, place))
    return parts


@skate.remote
def reduce_partition(*parts):
    """One partition of the index: the documents and places of each of its words."""
    index = {}
    for part in parts:
        for word, places in part.items():
            index.setdefault(word, []).extend(places)
    return {word: sorted(places) for word, places in sorted(index.items())}


DOCUMENTS = {
    "owl": "the owl and the pussycat went to sea in a beautiful pea green boat",
    "tyger": "tyger tyger burning bright in the forests of the night",
    "daffodils": "i wandered lonely as a cloud that floats on high over vales and hills",
    "raven": "once upon a midnight dreary while i pondered weak and weary",
}


def main(documents=DOCUMENTS):
    """The whole index."""
    mapped = [map_document.remote(name, text) for name, text in documents.items()]
    reduced = [reduce_partition.remote(*parts) for parts in zip(*mapped, strict=True)]
    index = {}
    for part in skate.get(reduced):
        index.update(part)
    return index


if __name__ == "__main__":
    skate.init()
    for word, places in sorted(main().items()):
        print(f"{word:10} {', '.join(f'{name}:{place}' for name, place in places)}")
