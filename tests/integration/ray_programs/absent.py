"""A program that asks for what is not there."""

try:
    import ray.tune
except ImportError as error:
    print(error)
    print(error.name)

from ray.util import no_such_thing
