"""The arguments of ``skate.init``: checked, and made a node to start or an address to join."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Final

from skate.options import unknown_option
from skate.runtime_env import EnvVars, check_runtime_env
from skate_node import NodeOptions

ADDRESS_VARIABLE: Final = "SKATE_ADDRESS"
EARLY_EXIT: Final = "enable_infeasible_task_early_exit"
EARLY_EXIT_S: Final = 10.0  # a task that no node can hold fails then, if it is asked for
LOGS_VARIABLE: Final = "SKATE_LOG_TO_DRIVER"
LOCAL: Final = "local"
AUTO: Final = "auto"

# Options that describe a node, by the field of NodeOptions that each becomes.
_NODE_FIELDS: Final = {
    "num_cpus": "num_cpus",
    "num_gpus": "num_gpus",
    "resources": "resources",
    "labels": "labels",
    "object_spilling_directory": "spill_dir",
    "object_store_memory": "object_store_memory",
    "_memory": "memory",
    "_metrics_export_port": "metrics_port",
    "_node_name": "node_name",
    "_temp_dir": "temp_dir",
}
# Options of Ray that ask for something only with other values than these.
_ASKS_FOR_NOTHING: Final[dict[str, tuple[Any, ...]]] = {
    "configure_logging": (None, True),
    "dashboard_host": (None, "127.0.0.1"),
    "dashboard_port": (None, 8265),
    "enable_resource_isolation": (None, False),
    "include_dashboard": (None, False),
    "job_config": (None,),
    "logging_config": (None,),
    "logging_format": (None,),
    "logging_level": (None, 20, "info"),
    "cgroup_path": (None,),
    "system_reserved_cpu": (None,),
    "system_reserved_memory": (None,),
    "_enable_object_reconstruction": (None, False),
    "_node_ip_address": (None, "127.0.0.1", "localhost"),
    "_plasma_directory": (None,),
    "_redis_max_memory": (None,),
    "_redis_password": (None,),
    "_redis_username": (None,),
    "_skip_env_hook": (None, False, True),
    "_tracing_startup_hook": (None,),
}
# Options that can mean nothing any more: what to do instead.
_GONE: Final = {
    "allow_multiple": "a process has one session; call skate.shutdown() before the next init",
    "local_mode": "there is no local mode; num_cpus=1 runs one task at a time",
    "storage": "storage was removed; write results to a file system of your own",
}
_ALL: Final = (
    "address",
    "ignore_reinit_error",
    "log_to_driver",
    "namespace",
    "runtime_env",
    *_NODE_FIELDS,
    *_ASKS_FOR_NOTHING,
    "_system_config",
)


@dataclass(frozen=True, slots=True)
class InitOptions:
    """What ``init`` was asked for: to join ``address``, or else to start ``node``."""

    address: str
    """Empty: start ``node``."""
    may_start: bool
    """No address was given: join a running cluster if there is one, else start ``node``."""
    node: NodeOptions
    namespace: str
    env_vars: EnvVars
    temp_dir: str | None
    shows_logs: bool
    """Print what the job's workers print."""


def parse_init_options(options: dict[str, Any]) -> InitOptions:
    """Check the keyword arguments of ``init``.

    Raises:
        RuntimeError: an unknown option, or one that Ray refuses too.
        TypeError, ValueError: a wrong value, or an option that does not go with an address.
    """
    given = {name: value for name, value in options.items() if value is not None}
    for name, value in given.items():
        _check_known(name, value)
    namespace = _namespace(given.get("namespace"))
    env_vars = check_runtime_env(given.get("runtime_env"))
    address, may_start = _address(given.get("address"))
    node_values = {_NODE_FIELDS[name]: given[name] for name in _NODE_FIELDS if name in given}
    # An explicit address does not go with options of a node; neither does one from the environment.
    if address and node_values:
        names = ", ".join(name for name in _NODE_FIELDS if name in given)
        raise ValueError(
            f"{names} can not be given when init() connects to the running cluster at {address!r};"
            " leave it out, or pass address='local' to start a cluster of your own."
        )
    if given.get("_system_config", {}).get(EARLY_EXIT):
        node_values["infeasible_timeout_s"] = EARLY_EXIT_S
    if "temp_dir" in node_values and not os.path.isabs(node_values["temp_dir"]):
        raise ValueError(f"_temp_dir must be an absolute path, got {node_values['temp_dir']!r}.")
    return InitOptions(
        address=address,
        may_start=may_start and not node_values,
        node=NodeOptions(is_tracing=_wants_tracing(os.environ), **node_values),
        namespace=namespace,
        env_vars=env_vars,
        temp_dir=node_values.get("temp_dir"),
        shows_logs=_shows_logs(given.get("log_to_driver", True)),
    )


def _check_known(name: str, value: Any) -> None:
    if name in _GONE:
        if value is not False:
            raise RuntimeError(f"init() does not take {name}: {_GONE[name]}.")
        return
    if name not in _ALL:
        raise RuntimeError(unknown_option("init()", name, _ALL))
    if name == "_system_config":
        if not isinstance(value, dict):
            raise TypeError(f"_system_config must be a dict, got {type(value).__name__}.")
        for key, setting in value.items():
            if key != EARLY_EXIT:
                raise ValueError(f"_system_config knows {EARLY_EXIT!r} alone, got {key!r}.")
            if not isinstance(setting, bool):
                raise TypeError(f"_system_config[{key!r}] must be True or False, got {setting!r}.")
    allowed = _ASKS_FOR_NOTHING.get(name)
    if allowed is not None and value not in allowed:
        raise ValueError(f"init() does not support {name}={value!r} yet; leave it out.")


def _shows_logs(value: Any) -> bool:
    """Whether to print what workers print; ``SKATE_LOG_TO_DRIVER=0`` silences them (SURFACE W6)."""
    if not isinstance(value, bool):
        raise TypeError(f"log_to_driver must be a bool, got {type(value).__name__}.")
    return value and os.environ.get(LOGS_VARIABLE, "1") != "0"


def _namespace(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise TypeError(f"namespace must be a string, got {type(value).__name__}.")
    if not value:
        raise ValueError("namespace must not be empty; leave it out for an anonymous one.")
    return value


def _address(value: Any) -> tuple[str, bool]:
    """The address to join (empty: none was asked for); whether a running cluster may be joined."""
    if value is not None and not isinstance(value, str):
        raise TypeError(f"address must be a string, got {type(value).__name__}.")
    if value in (None, "", AUTO):
        from_environment = os.environ.get(ADDRESS_VARIABLE, "")
        value = from_environment or value
    if not value:
        return "", True
    if value == LOCAL:
        return "", False
    return value, False


def _wants_tracing(environment: Any) -> bool:
    # The standard variables of OpenTelemetry; the daemon reads the rest of them.
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    exporter = environment.get("OTEL_TRACES_EXPORTER", "")
    if exporter:
        return bool(exporter != "none")
    return any(
        environment.get(name)
        for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    )
