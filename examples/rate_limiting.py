"""Rate limiting with resources: at most two calls of a service at a time, whoever makes them.

    python examples/rate_limiting.py

``service_slots`` is no hardware: it is a name that the node was started with an amount of. Each
call takes one for as long as it runs, so the scheduler does the limiting, in the whole cluster.
"""

from __future__ import annotations

import asyncio

import skate

SLOTS = 2


@skate.remote(num_cpus=0)
class Service:
    """Something that breaks when it is asked too much at a time."""

    def __init__(self):
        self.now = 0
        self.most = 0

    async def ask(self, question):
        """Answer after a while."""
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0.05)
        self.now -= 1
        return question.upper()

    async def most_at_a_time(self):
        """The most questions that there were at a time."""
        return self.most


@skate.remote(num_cpus=0)
def ask(service, question):
    """A call of the service. It holds what its caller asks for while it waits."""
    return skate.get(service.ask.remote(question))


def main(questions=12):
    """The answers, the most calls at a time with the limit, and without it."""
    words = [f"question {number}" for number in range(questions)]
    limited, unlimited = Service.remote(), Service.remote()
    slow_ask = ask.options(resources={"service_slots": 1})
    answers = skate.get([slow_ask.remote(limited, word) for word in words])
    skate.get([ask.remote(unlimited, word) for word in words])
    most = [service.most_at_a_time.remote() for service in (limited, unlimited)]
    return answers, *skate.get(most)


if __name__ == "__main__":
    skate.init(resources={"service_slots": SLOTS})
    replies, with_limit, without = main()
    print(f"{len(replies)} answers; at most {with_limit} at a time, {without} without a limit")
