"""``python -m skate_cluster``: the same as ``skate``."""

from __future__ import annotations

from skate_cluster.cli import main

if __name__ == "__main__":
    main()
