"""A parameter server: workers compute gradients on their own data and never wait for each other.

    python examples/parameter_server.py

The server is an actor that holds the weights. Each worker's gradient is applied as soon as it is
there, and that worker goes on with the weights of that moment (asynchronous SGD, as in Li et al.,
"Scaling Distributed Machine Learning with the Parameter Server", 2014).
"""

from __future__ import annotations

import numpy as np

import skate

TRUE_WEIGHTS = np.array([2.0, -3.0, 0.5])
ROWS = 400  # of data at each worker
RATE = 0.05


@skate.remote
class ParameterServer:
    """The weights, and how many updates they have seen."""

    def __init__(self, size):
        self.weights = np.zeros(size)
        self.updates = 0

    def apply(self, gradient):
        """Take a step; returns the new weights."""
        self.weights = self.weights - RATE * gradient
        self.updates += 1
        return self.weights

    def read(self):
        """The weights and the number of updates."""
        return self.weights, self.updates


@skate.remote
class Worker:
    """A part of the data, which never leaves this process."""

    def __init__(self, seed):
        random = np.random.default_rng(seed)
        self.x = random.normal(size=(ROWS, len(TRUE_WEIGHTS)))
        self.y = self.x @ TRUE_WEIGHTS + random.normal(scale=0.01, size=ROWS)
        self.random = random

    def gradient(self, weights):
        """Of the squared error, on a random batch."""
        rows = self.random.integers(0, ROWS, size=32)
        x, y = self.x[rows], self.y[rows]
        return 2 * x.T @ (x @ weights - y) / len(rows)


def main(workers=2, updates=150):
    """The learned weights, after ``updates`` gradients in all."""
    server = ParameterServer.remote(len(TRUE_WEIGHTS))
    weights, _ = skate.get(server.read.remote())
    group = [Worker.remote(seed) for seed in range(workers)]
    running = {worker.gradient.remote(weights): worker for worker in group}
    for _ in range(updates):
        (ready,), _ = skate.wait(list(running))
        worker = running.pop(ready)
        # The gradient goes from the worker to the server, the weights from there to the worker:
        # this process only passes references on.
        running[worker.gradient.remote(server.apply.remote(ready))] = worker
    learned, seen = skate.get(server.read.remote())
    assert seen == updates
    return learned


if __name__ == "__main__":
    skate.init()
    print("learned", np.round(main(), 2), "true", TRUE_WEIGHTS)
