"""Runs work that an interrupt (Ctrl-C) must not stop, because it would stay half done for the rest of the process."""

import _thread
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


def uninterrupted(work: Callable[[], T]) -> T:
    """Return work(), run in a thread that no interrupt reaches. An interrupt is raised at once; the work continues."""
    if threading.current_thread() is not threading.main_thread():
        return work()
    outcome: SimpleQueue[tuple[Any, Any]] = SimpleQueue()

    def do() -> None:
        try:
            outcome.put((work(), None))
        except BaseException as error:
            outcome.put((None, error))

    try:
        _thread.start_new_thread(do, ())
    except RuntimeError:  # no thread can be started
        return work()
    result, failure = outcome.get()
    if failure is not None:
        raise failure
    return result
