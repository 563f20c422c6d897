"""The cluster as a back end of joblib, so that scikit-learn runs on it. Source: SURFACE U4.

::

    from skate.util.joblib import register_skate

    register_skate()
    with joblib.parallel_config(backend="skate"):
        GridSearchCV(model, grid).fit(x, y)
"""

from __future__ import annotations

__all__ = ["register_ray", "register_skate"]


def register_skate() -> None:
    """Make ``"skate"`` (and ``"ray"``) a back end of joblib in this process.

    Options of its tasks are given as ``parallel_config(backend="skate", skate_remote_args={...})``.

    Raises:
        ImportError: joblib is not installed.
    """
    try:
        from joblib.parallel import register_parallel_backend  # noqa: PLC0415 - optional
    except ImportError as error:
        raise ImportError(
            "The joblib back end needs joblib: install it with pip install 'skate[joblib]'."
        ) from error
    from skate.util.joblib.backend import SkateBackend  # noqa: PLC0415 - imports joblib

    for name in ("skate", "ray"):
        register_parallel_backend(name, SkateBackend)


register_ray = register_skate
