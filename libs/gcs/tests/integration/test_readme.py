from __future__ import annotations

import re
from pathlib import Path

from skate_gcs.machine.actor_states import TRANSITIONS

README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")


def test_readme_draws_the_actors_transition_table():
    drawn = re.findall(r"^    ([A-Z_]+) --> ([A-Z_]+): (\w+)$", README, re.MULTILINE)
    table = [
        (before.name, after.name, trigger.value)
        for before, row in TRANSITIONS.items()
        for trigger, after in row.items()
    ]
    assert drawn == table


def test_readme_example_runs(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(example, "README.md", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out == "b'green' True\n"
