"""Work that an interrupt (Ctrl-C) must not fall into, since what it leaves half done stays so for the process."""

import _thread
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


def uninterrupted(work: Callable[[], T]) -> T:
    """What work() returns, done in a thread that no interrupt reaches. One is raised at once, and the work goes on."""
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
