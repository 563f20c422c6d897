"""Actor checkpointing: a worker is killed again and again, and nothing is counted twice or lost.

    python examples/checkpointing.py

``max_restarts`` brings the actor back; what it knew comes back from its checkpoint, a file that is
replaced as a whole. A call that was under way when it died is made again (``max_task_retries``), so
each call says which step it is, and a step that is in the checkpoint already is not done twice.
"""

from __future__ import annotations

import json
import os
import tempfile

import skate


@skate.remote(max_restarts=-1, max_task_retries=-1)
class Ledger:
    """The sum of the amounts of all steps so far."""

    def __init__(self, path):
        self.path = path
        self.state = {"step": 0, "total": 0}
        if os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                self.state = json.load(file)

    def add(self, step, amount, dies=False):
        """Do one step; returns the total. Steps come in order, and may come twice."""
        if step > self.state["step"]:
            self.state = {"step": step, "total": self.state["total"] + amount}
            with open(f"{self.path}.new", "w", encoding="utf-8") as file:
                json.dump(self.state, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(f"{self.path}.new", self.path)
            if dies:  # After the step is safe and before its caller hears of it: the worst moment.
                os._exit(1)
        return self.state["total"]

    def restarts(self):
        """Whether this is not the actor's first process."""
        return skate.get_runtime_context().was_current_actor_reconstructed


def main(steps=12, kill_at=(3, 7)):
    """The total after all steps, and whether the actor was restarted on the way."""
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger.remote(os.path.join(folder, "ledger.json"))
        total = 0
        for step in range(1, steps + 1):
            total = skate.get(ledger.add.remote(step, step, dies=step in kill_at))
        return total, skate.get(ledger.restarts.remote())


if __name__ == "__main__":
    skate.init()
    print("total {}, restarted: {}".format(*main()))
