"""A Ctrl-C that comes while a reference ends is not lost.

Python runs signal handlers between any two steps of Python code, the first step of a ``__del__``
included. What is raised there has no caller to go to: Python prints "Exception ignored" and goes
on, and a program in a loop never hears of its Ctrl-C, nor a task of its cancellation. So an
interrupt that was lost in a finalizer of Skate's is sent again.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

_OURS = ("skate", "skate_worker")

Post = Callable[..., Any]


def keep_interrupts(post: Post) -> None:
    """Install the hook for exceptions in finalizers, before whatever hook there is.

    ``post(callback, *args)`` runs a callback on another thread, soon: an interrupt that is asked
    for here would come inside the hook and be lost again. A later call replaces ``post``.
    """
    hook = sys.unraisablehook
    if isinstance(hook, _KeptInterrupts):
        hook.post = post
    else:
        sys.unraisablehook = _KeptInterrupts(post, hook)


class _KeptInterrupts:
    def __init__(self, post: Post, otherwise: Any) -> None:
        self.post = post
        self._otherwise = otherwise
        self._is_inside = False

    def __call__(self, unraisable: Any) -> None:
        module = getattr(unraisable.object, "__module__", None) or ""
        is_ours = module.partition(".")[0] in _OURS
        if not is_ours or not issubclass(unraisable.exc_type, KeyboardInterrupt):
            self._otherwise(unraisable)
            return
        self._is_inside = True
        try:
            self.post(self._send)
            traceback = unraisable.exc_traceback
            if traceback is not None and traceback.tb_next is None:
                # It came before the first step of the finalizer, which is yet to be done.
                ended = traceback.tb_frame.f_locals.get("self")
                if ended is not None:
                    ended.__del__()
        finally:
            self._is_inside = (
                False  # last: Python looks for signals at calls, of which none follows
            )

    def _send(self) -> None:
        if self._is_inside:
            self.post(self._send)  # on a busy machine the hook may take longer than the way here
            return
        main_thread = threading.main_thread().ident
        assert main_thread is not None
        # A signal, because the main thread may be waiting for a lock by then.
        signal.pthread_kill(main_thread, signal.SIGINT)
