"""joblib's view of the cluster: each batch of calls is a task of :class:`SkateExecutor`."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from joblib.parallel import AutoBatchingMixin, ParallelBackendBase

from skate.cluster import cluster_resources
from skate.session import require_session
from skate.util.executor import SkateExecutor


class SkateBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]  # untyped
    """``n_jobs=-1`` means every CPU of the cluster."""

    supports_retrieve_callback = True
    uses_threads = False
    supports_sharedmem = False

    def __init__(
        self,
        nesting_level: int | None = None,
        inner_max_num_threads: int | None = None,
        skate_remote_args: dict[str, Any] | None = None,
        ray_remote_args: dict[str, Any] | None = None,
        **more: Any,
    ) -> None:
        """``skate_remote_args`` (Ray's spelling works too): options of the tasks."""
        super().__init__(
            nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads, **more
        )
        self._task_options = skate_remote_args or ray_remote_args or {}
        self._executor: SkateExecutor | None = None

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """How many batches may run at a time.

        Raises:
            ValueError: 0 jobs.
        """
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None:
            return 1
        if n_jobs > 0:
            return n_jobs
        require_session()
        cpus = int(cluster_resources().get("CPU", 1))
        return max(1, cpus + 1 + n_jobs)

    def configure(
        self,
        n_jobs: int = 1,
        parallel: Any = None,
        prefer: str | None = None,
        require: str | None = None,
        **_memory_options: Any,
    ) -> int:
        """Get ready for one ``Parallel`` call; returns how many batches may run at a time."""
        require_session()
        self.parallel = parallel
        self._executor = SkateExecutor(**self._task_options)
        return self.effective_n_jobs(n_jobs)

    def submit(
        self, func: Callable[[], Any], callback: Callable[[Future[Any]], object] | None = None
    ) -> Future[Any]:
        """Run a batch."""
        assert self._executor is not None
        future = self._executor.submit(func)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    apply_async = submit  # the name that joblib before 1.5 calls

    def retrieve_result_callback(self, future: Future[Any]) -> Any:
        """The results of a batch; raises what one of its calls raised."""
        return future.result()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Stop what runs: one call of them has failed."""
        self.terminate(is_aborted=True)
        if ensure_ready:
            self.configure(n_jobs=self.parallel.n_jobs, parallel=self.parallel)

    def terminate(self, *, is_aborted: bool = False) -> None:
        """End a ``Parallel`` call."""
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(wait=False, cancel_futures=is_aborted)
        self.reset_batch_stats()
