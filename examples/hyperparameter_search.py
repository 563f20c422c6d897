"""Hyperparameter search by successive halving: all start, the worse half stops, the rest go on.

    python examples/hyperparameter_search.py

Each trial is an actor, so that it keeps its model between rounds. Source: Jamieson and Talwalkar,
"Non-stochastic Best Arm Identification and Hyperparameter Optimization", 2016.
"""

from __future__ import annotations

import math
import random

import skate

STEPS = 20  # of training in a round


@skate.remote
class Trial:
    """A model in training: one weight that is to become 3, by gradient descent with momentum."""

    def __init__(self, config):
        self.config = config
        self.weight = 0.0
        self.speed = 0.0

    def train(self, steps):
        """Go on for some steps; returns the loss."""
        for _ in range(steps):
            gradient = 2 * (self.weight - 3.0)
            self.speed = self.config["momentum"] * self.speed - self.config["rate"] * gradient
            self.weight += self.speed
        loss = (self.weight - 3.0) ** 2
        return loss if math.isfinite(loss) else math.inf


def sample(seed, count):
    """Configurations, drawn at random."""
    draw = random.Random(seed)
    return [
        {"rate": 10 ** draw.uniform(-4, 0.1), "momentum": draw.uniform(0, 0.9)}
        for _ in range(count)
    ]


def main(seed=1, trials=8):
    """The best configuration, its loss, and how many trials each round had."""
    alive = [(config, Trial.remote(config)) for config in sample(seed, trials)]
    rounds = []
    while True:
        rounds.append(len(alive))
        losses = skate.get([trial.train.remote(STEPS) for _, trial in alive])
        ranked = sorted(zip(losses, alive, strict=True), key=lambda entry: entry[0])
        if len(ranked) == 1:
            (loss, (config, _)) = ranked[0]
            return config, loss, rounds
        # The handles of the worse half go, and with them their actors.
        alive = [pair for _, pair in ranked[: len(ranked) // 2]]


if __name__ == "__main__":
    skate.init()
    best, best_loss, sizes = main()
    print(f"best {best} with loss {best_loss:.2g} after rounds of {sizes}")
