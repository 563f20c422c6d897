import os
import skate as ray
ray.init(runtime_env={"env_vars": {"counter_name": "test_counter"}})
@ray.remote
class Counter:
    def __init__(self):
        self.name = os.getenv("counter_name")
        self.counter = 0
    def inc(self):
        self.counter += 1
    def get_counter(self):
        return "{} got {}".format(self.name, self.counter)
counter = Counter.remote()
for _ in range(5):
    ray.get(counter.inc.remote())
    print(ray.get(counter.get_counter.remote()))
