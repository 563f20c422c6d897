"""`python -m benchmarks`: the one command; see README.md."""

from __future__ import annotations

import sys

from benchmarks.command import main

if __name__ == "__main__":
    sys.exit(main())
