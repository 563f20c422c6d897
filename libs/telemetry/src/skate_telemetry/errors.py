"""What setting up telemetry raises."""

from __future__ import annotations

from skate_core_ids import SkateError


class MissingExtraError(SkateError):
    """A part of telemetry was asked for whose third-party library is not installed."""

    def __init__(self, part: str, extra: str, distribution: str) -> None:
        super().__init__(
            f"{part} needs {distribution}. Install it with: pip install 'skate-telemetry[{extra}]'"
        )
        self.part = part
        self.extra = extra
        self.distribution = distribution

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str, str]]:
        return type(self), (self.part, self.extra, self.distribution)


class TracingConfigError(SkateError):
    """A variable of the environment asks for a way of exporting spans that is not supported."""

    def __init__(self, variable: str, value: str, remedy: str) -> None:
        super().__init__(f"{variable}={value!r} is not supported. {remedy}")
        self.variable = variable
        self.value = value
        self.remedy = remedy

    def __reduce__(self) -> tuple[type[TracingConfigError], tuple[str, str, str]]:
        return type(self), (self.variable, self.value, self.remedy)


class MetricsBindError(SkateError):
    """The metrics server can not listen on its address."""

    def __init__(self, endpoint: str, problem: str) -> None:
        super().__init__(f"The metrics server can not listen on {endpoint}: {problem}")
        self.endpoint = endpoint
        self.problem = problem

    def __reduce__(self) -> tuple[type[MetricsBindError], tuple[str, str]]:
        return type(self), (self.endpoint, self.problem)
