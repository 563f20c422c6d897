"""An async service: an actor that answers many requests at a time, and computes them in batches.

    python examples/async_service.py

Requests that come while a batch is being computed make up the next one, so the model is called
seldom under load and at once when there is none. Clients use ``await``, as the service does.
"""

from __future__ import annotations

import asyncio

import skate

BATCH_MAX = 8


def model(numbers):
    """What is expensive to call and cheap to call with more: here, squares."""
    return [number * number for number in numbers]


@skate.remote(num_cpus=0)
class Service:
    """Answers one number a request."""

    def __init__(self):
        self.waiting = []
        self.batch_sizes = []
        self.worker = None

    async def predict(self, number):
        """The answer to one request."""
        if number < 0:
            raise ValueError(f"{number} is negative")
        answer = asyncio.get_running_loop().create_future()
        self.waiting.append((number, answer))
        if self.worker is None or self.worker.done():
            self.worker = asyncio.create_task(self.work())
        return await answer

    async def work(self):
        """Compute batches until nobody waits."""
        while self.waiting:
            batch, self.waiting = self.waiting[:BATCH_MAX], self.waiting[BATCH_MAX:]
            self.batch_sizes.append(len(batch))
            # On a thread, so that requests go on coming in.
            results = await asyncio.to_thread(model, [number for number, _ in batch])
            for (_, answer), result in zip(batch, results, strict=True):
                answer.set_result(result)

    async def sizes(self):
        """Of all batches so far."""
        return self.batch_sizes


async def client(service, requests):
    """Send all requests at once; their answers, or the error of the one that is refused."""
    answers = [service.predict.remote(number) for number in requests]
    return await asyncio.gather(*answers, return_exceptions=True)


def main(requests=40):
    """The answers and the sizes of the batches that gave them."""
    service = Service.remote()
    answers = asyncio.run(client(service, [*range(requests), -1]))
    return answers, skate.get(service.sizes.remote())


if __name__ == "__main__":
    skate.init()
    replies, batches = main()
    print(f"{len(replies)} answers from batches of {batches}")
