"""Ctrl-C at any moment: after it no slice is written, and everything remains usable."""

import functools
import os
import random
import select
import signal
import subprocess
import sys
import threading
import time

import numba
import numba.core.event
import numpy as np
import pytest

import gpudrop
from gpudrop import Stream
from gpudrop.context import DEFAULT, current
from gpudrop.kernels import cpu, threads
from tests.processes import RESTORE_SIGINT, run
from tests.sampling import few

helpers = pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS == 1, reason="needs more than one thread")
SIZE = 2 * threads.SHARED  # large enough to be divided among threads


class Interrupt(BaseException):
    """The exception that Ctrl-C raises in these tests. KeyboardInterrupt would end pytest."""


class Alternating:
    """Coordinates the caller of `threads.share_out` with its one helper thread, and records which one waits."""

    def __init__(self):
        self.caller = threading.get_ident()
        self.holding, self.arrived, self.waiting, self.rest_done = (threading.Event() for _ in range(4))
        self.begun, self.inside = [], []

    def lock(self):
        """A replacement of `threads.Lock` that reports when the caller begins to wait for a lock of the helper."""
        return _Lock(self) if threading.get_ident() != self.caller else threading.Lock()

    def interrupt(self):
        signal.pthread_kill(self.caller, signal.SIGINT)

    def handle(self, number, frame):
        self.arrived.set()
        raise Interrupt

    def interrupt_twice_as_it_waits(self):
        for _ in range(2):
            assert self.waiting.wait(100)
            self.waiting.clear()
            self.arrived.clear()
            self.interrupt()
            while not self.arrived.wait(0.1):  # an interrupt that comes just before the wait is noticed after it
                self.interrupt()


class _Lock:
    def __init__(self, alternating):
        self.lock, self.of = threading.Lock(), alternating

    def __enter__(self):
        if not self.lock.acquire(blocking=False):
            self.of.waiting.set()
            self.lock.acquire()

    def __exit__(self, *error):
        self.lock.release()


@pytest.fixture
def two(monkeypatch):
    if not hasattr(signal, "pthread_kill") or threading.current_thread() is not threading.main_thread():
        pytest.skip("this thread can't be interrupted")
    alternating = Alternating()
    monkeypatch.setattr(threads, "team", None)
    monkeypatch.setattr(threads, "Lock", alternating.lock)
    numba.set_num_threads(2)
    before = signal.signal(signal.SIGINT, alternating.handle)
    yield alternating
    signal.signal(signal.SIGINT, before)
    numba.set_num_threads(numba.config.NUMBA_NUM_THREADS)


@helpers
@pytest.mark.parametrize("where", ["in a slice of its own", "as it calls for help", "as it waits for the last slice"])
def test_an_interrupted_call_returns_after_all_writing_has_stopped(two, monkeypatch, where):
    slices = []

    def part(lo, hi):
        two.begun.append(lo)
        if threading.get_ident() == two.caller:
            assert two.holding.wait(100)  # wait until the helper has a slice
            if where == "in a slice of its own":
                two.interrupt()
            if len(two.begun) == len(slices):
                two.rest_done.set()
        else:
            two.inside.append(lo)
            two.holding.set()
            before = two.rest_done if where == "as it waits for the last slice" else two.arrived
            assert before.wait(100)
            two.interrupt_twice_as_it_waits()
            two.inside.remove(lo)

    class Pool:
        def submit(self, work):
            threading.Thread(target=work).start()
            assert two.holding.wait(100)
            two.interrupt()

    threads.share_out(lambda lo, hi: slices.append((lo, hi)), SIZE)
    if where == "as it calls for help":
        monkeypatch.setattr(threads, "pool", Pool)
    with pytest.raises(Interrupt):
        threads.share_out(part, SIZE)
    assert two.inside == []
    begun = {"as it calls for help": 1, "in a slice of its own": 2, "as it waits for the last slice": len(slices)}
    assert len(two.begun) == begun[where]
    monkeypatch.undo()
    again = []
    threads.share_out(lambda lo, hi: again.append((lo, hi)), SIZE)
    assert sorted(again) == sorted(slices) and len(two.begun) == begun[where]


@helpers
def test_a_late_helper_of_an_interrupted_call_does_nothing(two, monkeypatch):
    late, begun = [], []

    class Pool:
        submit = staticmethod(late.append)

    def part(lo, hi):
        begun.append(lo)
        two.interrupt()

    monkeypatch.setattr(threads, "pool", Pool)
    with pytest.raises(Interrupt):
        threads.share_out(part, SIZE)
    for work in late:
        work()
    assert len(late) == len(begun) == 1


@helpers
@pytest.mark.parametrize("compiled", ["a kernel", "blocks"])
def test_an_interrupt_never_reaches_numbas_compiler(two, monkeypatch, compiled):
    """The interrupt is raised at once. The compilation still completes, and the next call finds its result."""
    x, met = np.ones((2, 3, 9, 9), np.float32), []

    class AsItCompiles(numba.core.event.Listener):
        def on_start(self, event):
            if not met:
                met.append(threading.get_ident())
                two.interrupt()
                while met[0] != two.caller and not two.arrived.wait(0.1):
                    two.interrupt()

        def on_end(self, event):
            pass

    def call():
        return gpudrop.dropblock2d(x, 0.2, block_size=3, rng=Stream(0, 0))

    want = call()
    if compiled == "a kernel":
        monkeypatch.setattr(cpu, "entry", functools.cache(cpu.entry.__wrapped__))
    else:
        monkeypatch.setattr(cpu, "grow_rows", cpu.jit()(cpu.grow_rows.py_func))
    with numba.core.event.install_listener("numba:compiler_lock", AsItCompiles()):
        with pytest.raises(Interrupt) as raised:
            call()
        assert met and not [entry for entry in raised.traceback if "numba" in entry.path.parts]
        np.testing.assert_array_equal(call(), want)


AS_IT_IMPORTS = """
import os, signal, sys
import numpy as np
moments = sys.argv[1:]
def hook(event, arguments):
    if event == "import" and arguments[0] in moments:
        moments.remove(arguments[0])
        os.kill(os.getpid(), signal.SIGINT)
sys.addaudithook(hook)
import gpudrop
x = np.ones(9, np.float32)
try:
    gpudrop.dropout(x)
except KeyboardInterrupt:
    print("interrupted")
print(gpudrop.dropout(x, 0).sum())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows can't send SIGINT to a single process")
def test_an_interrupt_while_numba_is_imported_leaves_it_usable():
    assert run(AS_IT_IMPORTS, "numba.core.typing").stdout == "interrupted\n9.0\n"


AT_EXIT = """
import os, signal
import numba.core.event as event
import numpy as np
import gpudrop

class AsItCompiles(event.Listener):
    interrupts = [signal.SIGINT]
    def on_start(self, event):
        if self.interrupts:
            os.kill(os.getpid(), self.interrupts.pop())
    def on_end(self, event):
        pass

event.register("numba:compile", AsItCompiles())
try:
    gpudrop.dropout(np.ones(9, np.float32))
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows can't send SIGINT to a single process")
def test_a_process_whose_first_call_was_interrupted_exits_normally(tmp_path):
    assert run(AT_EXIT, NUMBA_CACHE_DIR=tmp_path).stdout == "interrupted\n"
    assert list(tmp_path.rglob("*.nbc"))  # compiled although the call was interrupted


INTERRUPTED = """
import sys
import numpy as np
import gpudrop
if sys.argv[1] == "torch":
    import gpudrop.torch  # the kernels then run on PyTorch's threads
from gpudrop.context import DEFAULT, current
x = np.ones(1 << 22, np.float32)
y, rng, word, calls = np.empty_like(x), gpudrop.Generator(0), "ready", 0
want = gpudrop.dropout(x, 0.5, rng=gpudrop.Stream(5, 5))
gpudrop.dropout(x[:100], 0)
while True:
    try:
        print(word, flush=True)
        while True:
            with gpudrop.no_dropout():
                gpudrop.dropout(x[:100])
            gpudrop.dropout(x, 0.5, rng=rng, out=y)
    except KeyboardInterrupt:
        y.fill(7)
    calls, before = rng.state_dict()["call"], calls
    assert calls >= before and current() is DEFAULT
    mask = gpudrop.keep_mask(999, 0.5, rng)
    assert np.array_equal(mask, gpudrop.keep_mask(999, 0.5, gpudrop.Stream(0, calls)))
    assert np.array_equal(gpudrop.dropout(x, 0.5, rng=gpudrop.Stream(5, 5)), want)
    assert (y == 7).all(), "the interrupted call went on"
    word = "again"
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows can't send SIGINT to a single process")
@pytest.mark.parametrize("of", few(["own", "torch"], "own"))
def test_interrupts_at_any_moment_leave_everything_usable(pytestconfig, tmp_path, of):
    if of == "torch":
        pytest.importorskip("torch", reason="PyTorch is not installed")
    moments = random.Random(0)
    # To a file, because nothing reads a pipe here. ctypes writes much about interrupts that come where it can't raise
    # them.
    with (tmp_path / "errors").open("w") as errors:
        command = [sys.executable, "-c", RESTORE_SIGINT + INTERRUPTED, of]
        # coverage.py is off: an interrupt within its lock would make the process wait forever.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
    try:
        assert process.stdout.readline() == "ready\n", (tmp_path / "errors").read_text()
        for _ in range(200 if pytestconfig.getoption("--full") else 50):
            time.sleep(0.01 * moments.random())  # a random delay before the interrupt, not a wait for an event
            process.send_signal(signal.SIGINT)
            answered, _, _ = select.select([process.stdout], [], [], 100)
            assert answered, "the process hangs"
            assert process.stdout.readline() == "again\n", (tmp_path / "errors").read_text()
    finally:
        process.kill()
        process.communicate()


def test_an_interrupt_on_entering_no_dropout_leaves_dropout_on():
    moments = ["set"]

    def interrupt(frame, event, function):
        if event == "c_return" and function.__name__ in moments and "gpudrop" in frame.f_code.co_filename:
            moments.remove(function.__name__)
            raise Interrupt

    sys.setprofile(interrupt)  # is called after the context variable has changed
    try:
        with pytest.raises(Interrupt), gpudrop.no_dropout():
            pytest.fail("went on after the interrupt")
    finally:
        sys.setprofile(None)
    assert moments == []
    assert current() is DEFAULT
    assert gpudrop.dropout(np.ones(9, np.float32), 1).sum() == 0


BLOCKS = """
import gpudrop
from gpudrop.context import DEFAULT, current
word = "ready"
while True:
    try:
        print(word, flush=True)
        while True:
            for _ in range(50):
                with gpudrop.no_dropout():
                    pass
    except KeyboardInterrupt:
        pass
    assert current() is DEFAULT
    word = "again"
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows can't send SIGINT to a single process")
def test_no_interrupt_is_lost_on_entering_or_leaving_a_block():
    process = subprocess.Popen([sys.executable, "-c", RESTORE_SIGINT + BLOCKS], stdout=subprocess.PIPE, text=True)
    moments = random.Random(0)
    try:
        assert process.stdout.readline() == "ready\n"
        for _ in range(300):
            time.sleep(0.001 * moments.random())
            process.send_signal(signal.SIGINT)
            answered, _, _ = select.select([process.stdout], [], [], 100)
            assert answered, "the interrupt was lost"
            assert process.stdout.readline() == "again\n"
    finally:
        process.kill()
        process.communicate()
