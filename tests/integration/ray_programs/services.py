"""A program for Ray's utilities, each imported as Ray's documentation does."""

import pickle

import ray
import ray.util
import ray.util.queue as ray_queue
from ray.experimental import get_object_locations, tqdm_ray
from ray.experimental.tqdm_ray import tqdm
from ray.util import ActorPool, as_completed, inspect_serializability, map_unordered
from ray.util.metrics import Counter
from ray.util.multiprocessing import Pool
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import (
    NodeAffinitySchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)
from ray.util.state import list_objects

ray.init(num_cpus=2)


@ray.remote(num_cpus=0)
class Worker:
    def double(self, value):
        return 2 * value


@ray.remote(num_cpus=0)
def double(value):
    return 2 * value


@ray.remote(num_cpus=0)
def produce(queue, count):
    from ray.util.queue import Full

    for number in range(count):
        queue.put(number)
    try:
        queue.put_nowait(None)
    except Full:
        return "full"
    return "room"


pool = ActorPool([Worker.remote(), Worker.remote()])
assert list(pool.map(lambda actor, value: actor.double.remote(value), range(5))) == [0, 2, 4, 6, 8]

queue = Queue(maxsize=3)
assert ray.get(produce.remote(queue, 3)) == "full"
assert [queue.get() for _ in range(3)] == [0, 1, 2]
try:
    queue.get(block=False)
except Empty:
    pass
assert ray_queue.Queue is Queue

assert sorted(as_completed([double.remote(n) for n in range(4)])) == [0, 2, 4, 6]
assert sorted(map_unordered(double, range(4))) == [0, 2, 4, 6]
with Pool(2) as processes:
    assert processes.map(lambda n: n + 1, range(5)) == [1, 2, 3, 4, 5]

here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
assert ray.get(double.options(scheduling_strategy=here).remote(4)) == 8

group = placement_group([{"CPU": 1}], strategy="PACK")
ray.get(group.ready())
inside = PlacementGroupSchedulingStrategy(group)
assert ray.get(double.options(num_cpus=1, scheduling_strategy=inside).remote(5)) == 10
remove_placement_group(group)

requests = Counter("requests", "Requests.", tag_keys=("route",))
requests.inc(tags={"route": "/"})
kept = ray.put(bytes(200_000))
assert list(get_object_locations([kept])) == [kept]
assert kept.hex() in {row.object_id for row in list_objects()}
assert inspect_serializability([1])[0]
assert b"skate" in pickle.dumps(Empty)
assert b"ray" not in pickle.dumps(Empty).replace(b"array", b"")
assert tqdm_ray.tqdm is tqdm
print("services", ray.util.get_node_ip_address())
