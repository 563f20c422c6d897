"""joblib and scikit-learn on the cluster; skipped where they are not installed."""

from __future__ import annotations

import os
from typing import Any

import pytest

joblib = pytest.importorskip("joblib", reason="joblib is not installed")

from skate.util.joblib import register_ray, register_skate  # noqa: E402 - after the skip

pytestmark = [pytest.mark.usefixtures("shared_cluster"), pytest.mark.surface("U4")]


def check(number: int) -> int:
    if number < 0:
        raise ValueError(number)
    return number * 2


@pytest.fixture(autouse=True)
def registered() -> None:
    register_skate()


@pytest.mark.parametrize("name", ["skate", "ray"])
def test_parallel_runs_in_workers_and_keeps_order(name: str) -> None:
    register_ray()
    with joblib.parallel_config(backend=name):
        results = joblib.Parallel(n_jobs=-1)(joblib.delayed(check)(n) for n in range(30))
        pids = joblib.Parallel(n_jobs=2)(joblib.delayed(os.getpid)() for _ in range(4))
    assert results == [2 * n for n in range(30)]
    assert os.getpid() not in pids


def test_parallel_raises_what_a_call_raised_and_works_again() -> None:
    with joblib.parallel_config(backend="skate"):
        with pytest.raises(ValueError, match="-1"):
            joblib.Parallel(n_jobs=2)(joblib.delayed(check)(n) for n in (1, -1, 2))
        assert joblib.Parallel(n_jobs=2)(joblib.delayed(check)(n) for n in (1, 2)) == [2, 4]


def test_options_of_tasks_are_given_to_the_back_end() -> None:
    options = {"num_cpus": 0, "runtime_env": {"env_vars": {"ASKED_FOR": "this"}}}
    with joblib.parallel_config(backend="skate", skate_remote_args=options):
        found = joblib.Parallel(n_jobs=2)(joblib.delayed(os.getenv)("ASKED_FOR") for _ in range(2))
    assert found == ["this", "this"]


def test_results_can_be_had_as_a_generator() -> None:
    with joblib.parallel_config(backend="skate"):
        results = joblib.Parallel(n_jobs=2, return_as="generator")(
            joblib.delayed(check)(n) for n in range(5)
        )
        assert list(results) == [0, 2, 4, 6, 8]


def test_grid_search_finds_what_it_finds_in_one_process() -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    from sklearn.datasets import load_iris
    from sklearn.model_selection import GridSearchCV
    from sklearn.neighbors import KNeighborsClassifier

    x, y = load_iris(return_X_y=True)
    grid = {"n_neighbors": [1, 3, 9], "weights": ["uniform", "distance"]}

    def search(n_jobs: int | None) -> Any:
        return GridSearchCV(KNeighborsClassifier(), grid, cv=3, n_jobs=n_jobs).fit(x, y)

    alone = search(None)
    with joblib.parallel_config(backend="skate"):
        parallel = search(-1)
    assert parallel.best_params_ == alone.best_params_
    assert list(parallel.cv_results_["mean_test_score"]) == list(
        alone.cv_results_["mean_test_score"]
    )
