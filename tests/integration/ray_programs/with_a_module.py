"""A program for Ray whose tasks import a module of its own that imports Ray."""

import ray


@ray.remote
def call_helper():
    import helper_module

    return helper_module.describe()


@ray.remote
class Caller:
    def call(self):
        return ray.get(call_helper.options(runtime_env={"env_vars": {"OWN": "1"}}).remote())


ray.init()
assert ray.get(call_helper.remote()) == ["call_helper", True]
assert ray.get(Caller.remote().call.remote()) == ["call_helper", True]
print("modules")
