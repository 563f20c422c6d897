"""A program for Ray Core: tasks, actors, objects, errors. Nothing here knows of Skate."""

import argparse
import sys

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError, TaskCancelledError

parser = argparse.ArgumentParser()
parser.add_argument("--scale", type=int, default=1)
options = parser.parse_args()

ray.init(num_cpus=2, ignore_reinit_error=True)
assert ray.is_initialized()


@ray.remote
def scaled(value, by=options.scale):
    return value * by


@ray.remote(num_returns=2)
def split(values):
    return values[::2], values[1::2]


@ray.remote
def nested(depth):
    import ray as inner  # the worker has to find it too

    return 0 if depth == 0 else 1 + inner.get(nested.remote(depth - 1))


@ray.remote
def broken():
    raise LookupError("no such thing")


@ray.remote
def forever():
    import time

    while True:
        time.sleep(0.01)


@ray.remote
def count_up(n):
    yield from range(n)


@ray.remote
class Account:
    def __init__(self, balance=0):
        self.balance = balance

    def deposit(self, amount):
        if amount <= 0:
            raise ValueError("amount must be positive")
        self.balance += amount
        return self.balance

    @ray.method(num_returns=2)
    def both(self):
        return self.balance, -self.balance

    def leave(self):
        ray.actor.exit_actor()


assert ray.get([scaled.remote(n) for n in range(4)]) == [n * options.scale for n in range(4)]
even, odd = split.remote(list(range(6)))
assert ray.get(scaled.options(num_cpus=1).remote(ray.put(5), by=2)) == 10
assert (ray.get(even), ray.get(odd)) == ([0, 2, 4], [1, 3, 5])
assert ray.get(nested.remote(3)) == 3
assert [ray.get(ref) for ref in count_up.remote(3)] == [0, 1, 2]

try:
    ray.get(broken.remote())
except RayTaskError as error:
    assert isinstance(error, LookupError)
    assert "no such thing" in str(error)
else:
    sys.exit("the error was lost")

stuck = forever.remote()
try:
    ray.get(stuck, timeout=0.05)
except GetTimeoutError:
    ray.cancel(stuck)
try:
    ray.get(stuck)
except TaskCancelledError:
    pass

account = Account.options(name="account").remote(balance=10)
assert ray.get(ray.get_actor("account").deposit.remote(5)) == 15
assert ray.get(account.both.remote()) == [15, -15]
try:
    ray.get(account.deposit.remote(-1))
except ValueError:
    pass
account.leave.remote()
try:
    ray.get(account.deposit.remote(1))
except RayActorError:
    pass
else:
    sys.exit("the actor lives on")

ready, waiting = ray.wait([scaled.remote(n) for n in range(3)], num_returns=3)
assert (len(ready), waiting) == (3, [])
assert ray.cluster_resources()["CPU"] == 2
assert len(ray.nodes()) == 1
assert isinstance(ready[0], ray.ObjectRef)
assert isinstance(account, ray.actor.ActorHandle)
print("scale", options.scale, "script", sys.argv[0].rpartition("/")[2], "main", __name__)
ray.shutdown()
