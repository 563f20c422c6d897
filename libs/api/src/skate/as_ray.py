"""Run a program that was written for Ray as it stands: ``python -m skate.as_ray SCRIPT ...``.

``import ray`` and its submodules are Skate's in the script, and in the workers that run its tasks.
``skate run --as-ray SCRIPT`` does the same on a running cluster.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.machinery import SourceFileLoader
from types import ModuleType

from skate import import_alias

USAGE = "usage: python -m skate.as_ray SCRIPT [ARGUMENT ...]"


def main(arguments: Sequence[str]) -> int:
    """Run the script as this process's main program; returns the exit status.

    What the script raises goes on, ``SystemExit`` too.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stderr.write(f"{USAGE}\n")
        return 0 if arguments else 2
    script = arguments[0]
    if not os.path.isfile(script):
        sys.stderr.write(f"There is no script {script}; check the path.\n{USAGE}\n")
        return 2
    import_alias.install()
    # What Python does for `python SCRIPT`.
    sys.argv = list(arguments)
    sys.path[0] = os.path.dirname(os.path.abspath(script))
    program = ModuleType("__main__")
    program.__file__ = script
    program.__loader__ = loader = SourceFileLoader("__main__", script)
    program.__dict__["__builtins__"] = __builtins__
    sys.modules["__main__"] = program
    code = loader.source_to_code(loader.get_data(script), script)
    exec(code, program.__dict__)  # noqa: S102 - the program that was asked for
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
