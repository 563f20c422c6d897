"""Each example gives the result that it should; ``test_examples_*.py`` have the two older ones."""

from __future__ import annotations

import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from examples import (
    actor_tree,
    async_service,
    checkpointing,
    hyperparameter_search,
    map_reduce,
    monte_carlo,
    parameter_server,
    pipeline,
    rate_limiting,
    streaming_aggregation,
    task_graph,
    web_crawler,
)

EXAMPLES = Path(rate_limiting.__file__).parent


@pytest.fixture
def example(shared_cluster: Any) -> None:
    """The cluster that most examples share here."""


@pytest.mark.usefixtures("example")
def test_parameter_server_learns_the_weights() -> None:
    assert parameter_server.main() == pytest.approx(parameter_server.TRUE_WEIGHTS, abs=0.1)


@pytest.mark.usefixtures("example")
def test_web_crawler_finds_every_page_once() -> None:
    # 31 pages; 32 to 63 and the one that no page has are dead.
    assert web_crawler.main(pages=32) == (31, 33)


@pytest.mark.usefixtures("example")
def test_actor_tree_sums_what_its_leaves_hold() -> None:
    summary, actors = actor_tree.main(range(300), fan_out=3, leaf_size=100)
    assert summary == actor_tree.Summary(300, sum(range(300)), 299)
    assert actors == 4


@pytest.mark.usefixtures("example")
def test_pipeline_loses_nothing_and_holds_its_producer_back() -> None:
    results, shares, ahead = pipeline.main(count=30)
    assert results == [number * number for number in range(30)]
    assert sum(shares) == 30
    assert ahead <= pipeline.DEPTH


@pytest.mark.usefixtures("example")
def test_hyperparameter_search_halves_and_finds_a_good_one() -> None:
    best, loss, rounds = hyperparameter_search.main(trials=4)
    assert rounds == [4, 2, 1]
    assert best in hyperparameter_search.sample(1, 4)
    assert loss < 1e-3


@pytest.mark.usefixtures("example")
def test_monte_carlo_stops_at_the_error_that_was_asked_for() -> None:
    estimate, error, darts = monte_carlo.main(standard_error=0.01)
    assert error <= 0.01
    assert abs(estimate - math.pi) < 5 * error
    assert darts % monte_carlo.DARTS == 0


@pytest.mark.usefixtures("example")
def test_streaming_aggregation_counts_what_one_process_counts() -> None:
    expected = Counter(
        (int(second // streaming_aggregation.WINDOW_S), page)
        for seed in range(3)
        for second, page in streaming_aggregation.events(seed, 200)
    )
    assert streaming_aggregation.main(sources=3, count=200) == expected


@pytest.mark.usefixtures("example")
def test_map_reduce_indexes_every_word() -> None:
    index = map_reduce.main()
    expected: dict[str, list[tuple[str, int]]] = {}
    for name, text in map_reduce.DOCUMENTS.items():
        for place, word in enumerate(text.split()):
            expected.setdefault(word, []).append((name, place))
    assert index == {word: sorted(places) for word, places in expected.items()}


@pytest.mark.usefixtures("example")
def test_checkpointed_actor_counts_each_step_once_however_often_it_dies() -> None:
    assert checkpointing.main(steps=8, kill_at=(2, 5)) == (36, True)


@pytest.mark.usefixtures("example")
def test_task_graph_builds_each_target_once_after_what_it_needs() -> None:
    value, history, builds = task_graph.main()
    assert value == 300 + 1 + 10 + 300 + 1 + 3
    assert builds == len(history) == len(task_graph.RECIPES)
    for target, needs in task_graph.RECIPES.items():
        before = history[: history.index(target)]
        assert {need for need in needs if isinstance(need, str)} <= set(before)


@pytest.mark.usefixtures("example")
def test_async_service_answers_all_in_fewer_batches() -> None:
    answers, batches = async_service.main(requests=40)
    assert answers[:-1] == [number * number for number in range(40)]
    assert isinstance(answers[-1], ValueError)
    assert sum(batches) == 40
    assert len(batches) < 40
    assert max(batches) <= async_service.BATCH_MAX


def test_rate_limiting_keeps_the_limit_and_runs_as_a_script(run_script: Any) -> None:
    done = run_script(EXAMPLES / "rate_limiting.py")
    assert done.returncode == 0, done.stderr
    told = re.fullmatch(
        r"12 answers; at most (\d+) at a time, (\d+) without a limit\n", done.stdout
    )
    assert told, done.stdout
    assert int(told[1]) <= rate_limiting.SLOTS


def test_every_example_stands_in_the_list() -> None:
    text = (EXAMPLES / "README.md").read_text("utf-8")
    listed = re.findall(r"^\| \[(\w+\.py)\]", text, re.MULTILINE)
    assert sorted(listed) == sorted(path.name for path in EXAMPLES.glob("*.py"))
