"""What goes wrong around a call: wrong arguments, interrupts, forks, no memory, no cache, no driver, old states.

Whatever it is, it is told, nothing hangs, and generators and arrays are as they were.
"""

import asyncio
import copy
import ctypes
import functools
import json
import os
import pickle
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from types import SimpleNamespace

import numba
import numba.core.event
import numpy as np
import pytest
from test_layers import CLASSES, SHAPES, arrays

import gpudrop
from gpudrop import Generator, Stream, backends, generator, layers, schedules
from gpudrop.dropout import EVERYWHERE, here
from gpudrop.kernels import cpu

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system can't fork")
helpers = pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS == 1, reason="one thread alone")
SIZE = 2 * cpu.SHARED  # worth sharing out to threads


# What is started in the background may be told to ignore interrupts, and so would what it starts.
HEEDS = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"


def run(code, *arguments, clean=True, **environment):
    """A process that runs code, and what it wrote; it has to end well, and soon."""
    command = [sys.executable, "-c", HEEDS + code, *map(str, arguments)]
    environment = os.environ | {name: str(value) for name, value in environment.items()}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    if clean:
        assert done.stderr == ""
    return done


# Threads


def at_once(count, call):
    """call(number) in so many threads that begin together: the results, or the first exception."""
    barrier = threading.Barrier(count)

    def begin(number):
        barrier.wait()
        return call(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(begin, range(count)))


def numbers_of(masks, seed):
    """The calls whose masks they are, all of one shape."""
    calls = {gpudrop.keep_mask(masks[0].shape, 0.5, Stream(seed, call)).tobytes(): call for call in range(len(masks))}
    assert len(calls) == len(masks)
    return sorted(calls.get(mask.tobytes(), -1) for mask in masks)


@pytest.mark.parametrize("rng", ["one generator", "the default generator"])
def test_32_threads_get_each_mask_of_a_generator_once(rng):
    source = Generator(6) if rng == "one generator" else gpudrop.manual_seed(6)
    x = np.ones(500, np.float32)  # all of them read it

    def draw(number):
        y, backprop = gpudrop.dropout_vjp(x, 0.5, rng=source if rng == "one generator" else None)
        np.testing.assert_array_equal(backprop(x), y)
        return [y != 0, gpudrop.keep_mask(500, 0.5, source), gpudrop.layers.Dropout(rng=source)(x) != 0]

    masks = [mask for drawn in at_once(32, draw) for mask in drawn]
    assert numbers_of(masks, 6) == list(range(96))
    assert source.state_dict() == {"seed": 6, "call": 96}


def test_32_threads_write_parts_of_one_array():
    x, out = np.arange(1, 32 * 4099 + 1, dtype=np.float32), np.full(32 * 4099, np.nan, np.float32)

    def write(number):
        mine = slice(number * 4099, (number + 1) * 4099)  # next to another's, in the same line of the cache
        gpudrop.dropout(x[mine], 0.5, rng=Stream(3, number), out=out[mine])
        gpudrop.dropout(x[mine], 0.5, rng=Stream(3, number), out=x[mine])

    at_once(32, write)
    masks = [gpudrop.keep_mask(4099, 0.5, Stream(3, number)) for number in range(32)]
    want = np.where(np.concatenate(masks), 2 * np.arange(1, x.size + 1), 0)
    np.testing.assert_array_equal(out, want)
    np.testing.assert_array_equal(x, want)


def test_each_thread_switches_dropout_off_for_itself():
    x = np.ones(300, np.float32)

    def half_of_them(number):
        if number % 2:
            return gpudrop.dropout(x, 1).sum()
        with gpudrop.no_dropout():
            return gpudrop.dropout(x, 1).sum()

    assert at_once(32, half_of_them) == [300, 0] * 16


def test_tasks_switch_dropout_off_for_themselves():
    x = np.ones(300, np.float32)

    async def off(inside, outside):
        with gpudrop.no_dropout():
            inside.set()
            await outside.wait()  # for the other task, which has run meanwhile
            return [gpudrop.dropout(x, 1).sum(), await asyncio.to_thread(lambda: gpudrop.dropout(x, 1).sum())]

    async def on(inside, outside):
        await inside.wait()
        total = gpudrop.dropout(x, 1).sum()
        outside.set()
        return total

    async def both():
        events = asyncio.Event(), asyncio.Event()
        return await asyncio.gather(off(*events), on(*events))

    assert asyncio.run(both()) == [[300, 300], 0]
    assert here() is EVERYWHERE


def test_tasks_get_each_mask_of_the_default_generator_once():
    gpudrop.manual_seed(9)
    x = np.ones(500, np.float32)

    async def draw():
        await asyncio.sleep(0)
        return [gpudrop.dropout(x) != 0, await asyncio.to_thread(gpudrop.dropout, x) != 0]

    async def many():
        return [mask for drawn in await asyncio.gather(*(draw() for _ in range(20))) for mask in drawn]

    assert numbers_of(asyncio.run(many()), 9) == list(range(40))


# Forks

FORKS = """
import os, signal, sys, threading
import numpy as np
import gpudrop
x = np.ones(1 << 21, np.float32)
rng, stop = gpudrop.Generator(0), threading.Event()
want = gpudrop.dropout(x, 0.5, rng=gpudrop.Stream(5, 5))
gpudrop.drop_path(x.reshape(1 << 11, -1))

def busy(own):
    while not stop.is_set():
        gpudrop.dropout(x, 0.5, rng=rng, out=own)
        gpudrop.dropout(x[:9])
        rng.load_state_dict(rng.state_dict())

def child():
    signal.alarm(100)  # which ends it, if it hangs
    right = np.array_equal(gpudrop.dropout(x, 0.5, rng=gpudrop.Stream(5, 5)), want)
    state = rng.state_dict()
    mask = gpudrop.keep_mask(99, 0.5, rng)
    right &= np.array_equal(mask, gpudrop.keep_mask(99, 0.5, gpudrop.Stream(**state)))
    gpudrop.dropout(x)
    gpudrop.manual_seed(0)
    right &= rng.spawn(1) != []
    os._exit(0 if right else 3)

threads = [threading.Thread(target=busy, args=(np.empty_like(x),)) for _ in range(4)]
for thread in threads:
    thread.start()
for _ in range(8):
    process = os.fork()
    if process == 0:
        child()
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
stop.set()
for thread in threads:
    thread.join()
"""


@forks
def test_a_child_forked_in_the_midst_of_other_threads_calls_goes_on():
    run(FORKS, clean=False)  # Python itself warns of it


FORK_WHILE_LOCKED = """
import os, signal, sys, threading
import numpy as np
import gpudrop
from numba.core.compiler_lock import global_compiler_lock
lock = global_compiler_lock if sys.argv[1] == "compiling" else gpudrop.generator._lock
rng, forking, locked = gpudrop.Generator(3), threading.Event(), threading.Event()
gpudrop.dropout(np.ones(9, np.float32), activation="softplus", training=False)
# Hooks are called last first, so that the other thread lets go when the package's already wait.
os.register_at_fork(before=forking.set)

def hold():
    lock.acquire()
    locked.set()
    forking.wait()
    lock.release()

thread = threading.Thread(target=hold)
thread.start()
locked.wait()
process = os.fork()
if process == 0:
    signal.alarm(100)
    gpudrop.dropout(np.ones(9, np.float32), activation="softplus", rng=rng)
    os._exit(0 if rng.next() == gpudrop.Stream(3, 1) else 3)
assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
thread.join()
gpudrop.dropout(np.ones(9, np.float32), rng=rng)  # and so does the parent
"""


@forks
@pytest.mark.parametrize("lock", ["drawing", "compiling"])
def test_a_fork_waits_for_what_a_child_would_wait_for_in_vain(lock):
    run(FORK_WHILE_LOCKED, lock, clean=False)


# Interrupts


class Interrupt(BaseException):
    """What Ctrl-C raises here, in the place of KeyboardInterrupt, which would end pytest."""


class Alternating:
    """The caller of `cpu._share_out`, its one helper, and who waits for whom."""

    def __init__(self):
        self.caller = threading.get_ident()
        self.holding, self.arrived, self.waiting, self.rest_done = (threading.Event() for _ in range(4))
        self.begun, self.inside = [], []

    def lock(self):
        """As threading.Lock, but tells when the caller begins to wait for a lock of the helper's."""
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
            while not self.arrived.wait(0.1):  # one that comes just before the wait is noticed after it
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
        pytest.skip("nobody can interrupt this thread")
    alternating = Alternating()
    monkeypatch.setattr(cpu, "team", None)
    monkeypatch.setattr(cpu, "threading", SimpleNamespace(**vars(threading) | {"Lock": alternating.lock}))
    numba.set_num_threads(2)
    before = signal.signal(signal.SIGINT, alternating.handle)
    yield alternating
    signal.signal(signal.SIGINT, before)
    numba.set_num_threads(numba.config.NUMBA_NUM_THREADS)


@helpers
@pytest.mark.parametrize("where", ["in a slice of its own", "as it calls for help", "as it waits for the last slice"])
def test_an_interrupted_call_ends_when_nobody_writes_any_more(two, monkeypatch, where):
    slices = []

    def part(lo, hi):
        two.begun.append(lo)
        if threading.get_ident() == two.caller:
            assert two.holding.wait(100)  # so that the helper has a slice
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

    cpu._share_out(lambda lo, hi: slices.append((lo, hi)), SIZE)
    if where == "as it calls for help":
        monkeypatch.setattr(cpu, "_pool", Pool)
    with pytest.raises(Interrupt):
        cpu._share_out(part, SIZE)
    assert two.inside == []
    begun = {"as it calls for help": 1, "in a slice of its own": 2, "as it waits for the last slice": len(slices)}
    assert len(two.begun) == begun[where]
    monkeypatch.undo()
    again = []
    cpu._share_out(lambda lo, hi: again.append((lo, hi)), SIZE)
    assert sorted(again) == sorted(slices) and len(two.begun) == begun[where]


@helpers
def test_who_comes_to_help_an_interrupted_call_finds_nothing_to_do(two, monkeypatch):
    late, begun = [], []

    class Pool:
        submit = staticmethod(late.append)

    def part(lo, hi):
        begun.append(lo)
        two.interrupt()

    monkeypatch.setattr(cpu, "_pool", Pool)
    with pytest.raises(Interrupt):
        cpu._share_out(part, SIZE)
    for work in late:
        work()
    assert len(late) == len(begun) == 1


@helpers
@pytest.mark.parametrize("compiled", ["a kernel", "blocks"])
def test_an_interrupt_never_reaches_numba_as_it_compiles(two, monkeypatch, compiled):
    """It is raised at once; what is compiled is done all the same, and the next call finds it."""
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
        monkeypatch.setattr(cpu, "kernel", functools.cache(cpu.kernel.__wrapped__))
    else:
        monkeypatch.setattr(cpu, "_grow", cpu.jit()(cpu._grow.py_func))
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


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT for one process alone")
def test_an_interrupt_as_the_first_call_imports_numba_leaves_it_whole():
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


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT for one process alone")
def test_a_process_ends_well_whose_first_call_was_interrupted(tmp_path):
    assert run(AT_EXIT, NUMBA_CACHE_DIR=tmp_path).stdout == "interrupted\n"
    assert list(tmp_path.rglob("*.nbc"))  # what was compiled as it was interrupted


INTERRUPTED = """
import sys
import numpy as np
import gpudrop
if sys.argv[1] == "torch":
    import gpudrop.torch  # whose threads the kernels then run on
from gpudrop.dropout import EVERYWHERE, here
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
    assert calls >= before and here() is EVERYWHERE
    mask = gpudrop.keep_mask(999, 0.5, rng)
    assert np.array_equal(mask, gpudrop.keep_mask(999, 0.5, gpudrop.Stream(0, calls)))
    assert np.array_equal(gpudrop.dropout(x, 0.5, rng=gpudrop.Stream(5, 5)), want)
    assert (y == 7).all(), "what was interrupted went on"
    word = "again"
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT for one process alone")
@pytest.mark.parametrize("threads", ["own", "torch"])
def test_interrupts_at_any_moment_leave_everything_usable(tmp_path, threads):
    if threads == "torch":
        pytest.importorskip("torch", reason="PyTorch is not installed")
    moments = random.Random(0)
    # To a file, for ctypes writes much there of interrupts that come where it can't raise them, and nobody reads it.
    with (tmp_path / "errors").open("w") as errors:
        command = [sys.executable, "-c", HEEDS + INTERRUPTED, threads]
        # Not measured by coverage.py, in whose lock an interrupt would leave the process waiting for ever.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
    try:
        assert process.stdout.readline() == "ready\n", (tmp_path / "errors").read_text()
        for _ in range(200):
            time.sleep(0.01 * moments.random())  # which is not for anything to happen
            process.send_signal(signal.SIGINT)
            answered, _, _ = select.select([process.stdout], [], [], 100)
            assert answered, "hangs"
            assert process.stdout.readline() == "again\n", (tmp_path / "errors").read_text()
    finally:
        process.kill()
        process.communicate()


def test_an_interrupt_as_dropout_is_switched_off_leaves_it_on(monkeypatch):
    module = sys.modules["gpudrop.dropout"]  # for in the package the function has that name
    variable, armed = module._surroundings, [True]

    class Interrupted:
        get = variable.get

        def set(self, value):
            variable.set(value)
            if armed:
                armed.pop()
                raise Interrupt

    monkeypatch.setattr(module, "_surroundings", Interrupted())
    with pytest.raises(Interrupt), gpudrop.no_dropout():
        pytest.fail("went on after the interrupt")
    assert here() is EVERYWHERE
    assert gpudrop.dropout(np.ones(9, np.float32), 1).sum() == 0


# Memory


def call(cls, function=None, **changes):
    """A call of a layer's variant, or of a function like it, with all right but for some changes."""
    x, *previous = arrays_of(cls)
    own = {"x": x, "p": 0.4} | ({"previous": previous[0]} if previous else {}) | changes
    positional = [own.pop(name) for name in ("x", "previous") if name in own]
    return (function or cls.function)(*positional, own.pop("p"), **own)


def arrays_of(cls):
    return [array.astype(np.float32) for array in arrays(cls())]


def huge(shape):
    """As many axes, with more elements than any memory, all in one place that may be written to."""
    return np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), (2**48, *shape[1:]), (0,) * len(shape))


@pytest.mark.parametrize("cls", CLASSES)
def test_no_memory_for_the_result_leaves_the_generator_where_it_was(cls):
    rng, x = Generator(1), huge(SHAPES[cls.__name__])
    changes = {"x": x, "rng": rng} | ({"previous": x} if cls is layers.Zoneout else {})
    for function in (cls.function, cls.function.vjp):
        with pytest.raises(MemoryError):
            call(cls, function, **changes)
    with pytest.raises(MemoryError):
        cls(rng=rng)(*(x for _ in arrays_of(cls)))
    assert rng.state_dict() == {"seed": 1, "call": 0}
    np.testing.assert_array_equal(call(cls, rng=rng), call(cls, rng=Stream(1, 0)))


@pytest.mark.parametrize("name", ["DropPath", "EmbeddingDropout", "TokenDropout", "DropBlock1d", "DropBlock2d"])
def test_no_memory_for_the_mask_leaves_the_generator_where_it_was(name, monkeypatch):
    monkeypatch.setattr("gpudrop.backends.overlaps_itself", lambda array: False)  # such an out is refused, else
    rng, cls, x = Generator(1), getattr(layers, name), huge(SHAPES[name])
    with pytest.raises(MemoryError):
        call(cls, x=x, out=x, rng=rng)  # in place, so that the mask alone needs memory
    assert rng.state_dict() == {"seed": 1, "call": 0} and x[0].max() == 0
    with pytest.raises(MemoryError):
        gpudrop.keep_mask(x.shape, 0.5, rng)
    with pytest.raises(MemoryError):
        gpudrop.drop_connect(np.ones((2, 3), np.float32), samples=2**48, rng=rng)
    assert rng.next() == Stream(1, 0)


OUT_OF_MEMORY = """
import resource, zlib
import numpy as np
import gpudrop
x = np.ones((40 << 20, 2), np.float16)
y, rng = np.empty_like(x), gpudrop.Generator(1)
calls = {
    "dropout": lambda: gpudrop.dropout(x, 0.5, rng=rng),
    "drop_path": lambda: gpudrop.drop_path(x, 0.5, rng=rng, out=y),
    "keep_mask": lambda: gpudrop.keep_mask(x.size, 0.5, rng),
    "backprop": lambda: backprop(x),
    "backprop of drop_path": lambda: backprop_of_paths(x, out=y),
}
_, backprop = gpudrop.dropout_vjp(x, 0.5, rng=gpudrop.Stream(2, 2), out=y)
_, backprop_of_paths = gpudrop.drop_path.vjp(x, 0.5, rng=gpudrop.Stream(2, 2), out=y)
want = {name: zlib.crc32(call()) for name, call in calls.items()}
rng.load_state_dict({"seed": 1, "call": 0})
pages = int(open("/proc/self/statm").read().split()[0])
soft, hard = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (8 << 20), hard))
y.fill(7)
for name, call in calls.items():
    try:
        call()
    except MemoryError:
        continue
    raise AssertionError(name)
assert rng.state_dict() == {"seed": 1, "call": 0} and (y[::999] == 7).all()
gpudrop.dropout(x, 0.5, rng=gpudrop.Stream(2, 2), out=y)  # which needs none
resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
assert {name: zlib.crc32(call()) for name, call in calls.items()} == want
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory as Linux does")
def test_after_memory_has_run_out_all_goes_on_as_before():
    run(OUT_OF_MEMORY, MALLOC_ARENA_MAX=1)  # other threads' arenas have room that counts already


# Arguments

NOT_A_NUMBER = ["0.5", b"0.5", bytearray(b"0.5"), np.array("0.5"), None, [0.5], np.array([0.5]), 0.5 + 0j]
NOT_A_NUMBER += [np.complex64(0.5), np.array(None), float]
NOT_AN_ARRAY = [None, 1.0, np.float32(1), [1.0], np.ma.masked_array(np.ones(3, np.float32)), np.ndarray]
OF_OTHER_DTYPES = [int, np.uint8, bool, complex, object, ">f4", ">f8", np.longdouble, "U3", "S4", "V4", "M8[s]"]
OF_OTHER_DTYPES += [[("a", "<f4")], [("a", "<f4"), ("b", "<i4")]]
RNG = "rng must be a gpudrop.Generator, a gpudrop.Stream or None, got "


def wrong(cls):
    """(what is changed in a right call, the error, and how its message begins)"""
    x, *previous = arrays_of(cls)
    strength = cls.strength()
    for p in NOT_A_NUMBER:
        yield {"p": p}, TypeError, rf"{strength} must be a number.*, got {re.escape(repr(p))}"
    for p in (np.nan, -0.1, -np.inf, np.inf, *([] if strength == "std" else [1.5, 10**400, np.float16(1.5)])):
        yield {"p": p}, ValueError, f"{strength} must be (between 0 and 1|finite and not negative), got "
    for name in ["x", "previous"][: 1 + len(previous)]:
        for array in NOT_AN_ARRAY:
            yield {name: array}, TypeError, f"{name} must be a NumPy, CuPy or Numba array"
    for dtype in OF_OTHER_DTYPES:
        yield {"x": np.zeros(x.shape, dtype)}, TypeError, "x must have one of the dtypes float16, bfloat16, float32, "
    yield {"x": np.array(None)}, (TypeError, ValueError), "x must have "
    yield {"activation": "gelo"}, ValueError, "unknown activation 'gelo'; known: .*elu, "
    yield {"activation": ["relu"]}, ValueError, r"unknown activation \['relu'\]; known: .*elu, "
    for rng in (7, "7", Generator, {"seed": 0, "call": 0}):
        yield {"rng": rng}, TypeError, RNG + type(rng).__name__
    yield {"rng": np.random.default_rng(0)}, TypeError, RNG + "numpy.random._generator.Generator"
    for bits in (12, 0, 16.0, "16", None, np.array([16])):
        yield {"bits": bits}, ValueError, "bits must be one of 8, 16, 32, got "
    yield {"backend": "gpu"}, ValueError, "unknown backend 'gpu'; known: cpu, "
    yield {"backend": ["cpu"]}, ValueError, r"unknown backend \['cpu'\]; known: cpu, "
    yield {"backend": "numba_cuda"}, ValueError, "backend 'numba_cuda' can't serve a NumPy array"
    yield {"q": 1}, TypeError, ".*unexpected keyword argument 'q'"
    for array in NOT_AN_ARRAY[1:]:  # None is no array to write to
        yield {"out": array}, TypeError, "out must be a NumPy, CuPy or Numba array"
    for array in (x.astype(np.float64), x[..., :-1].copy(), x.astype(">f4"), x.reshape(-1)):
        yield {"out": array}, ValueError, "out must be a NumPy array of dtype float32 and shape "
    read_only = x.copy()
    read_only.flags.writeable = False
    yield {"out": read_only}, ValueError, "out must be writable, got a read-only array"
    for strides in ((0,) * x.ndim, (4,) * x.ndim):
        repeated = np.lib.stride_tricks.as_strided(np.zeros(sum(x.shape), np.float32), x.shape, strides)
        yield {"out": repeated}, ValueError, "out must not overlap itself, got an array whose elements share memory"
    line = np.ones(x.size + 1, np.float32)
    shifted = {"x": line[1:].reshape(x.shape), "out": line[:-1].reshape(x.shape)}
    yield shifted, ValueError, "out must be x itself or share no memory with it, got an overlapping view"
    yield {"x": x, "out": x[::-1]}, ValueError, "out must be x itself or share no memory with it"
    if previous:
        shifted["previous"] = shifted.pop("x")
        yield shifted, ValueError, "out must be previous itself or share no memory with it"
        yield {"previous": previous[0].astype(np.float64)}, ValueError, "previous must be a NumPy array of dtype float3"
        yield {"previous": previous[0][:-1]}, ValueError, "previous must be a NumPy array of dtype float32 and shape "


def call_layer(cls, x=None, previous=None, **options):
    default = arrays_of(cls)
    given = zip((x, previous), default, strict=False)
    return cls(**options)(*(array if own is None else own for own, array in given))


@pytest.mark.parametrize("cls", CLASSES)
def test_what_is_wrong_is_told_before_anything_is_written_or_drawn(cls):
    """In a function, its vjp and, as far as it takes the argument, a layer."""
    rng = Generator(8)
    for changes, error, message in wrong(cls):
        before = {name: np.array(array) for name, array in changes.items() if name in ("x", "previous", "out")}
        for function in (cls.function, cls.function.vjp):
            with pytest.raises(error, match=f"^{message}"):
                call(cls, function, **{"rng": rng} | changes)
        for name, array in before.items():
            np.testing.assert_array_equal(changes[name], array)
        if not changes.keys() & {"out", "backend", "q"} and all(value is not None for value in changes.values()):
            options = {cls.strength() if name == "p" else name: value for name, value in changes.items()}
            with pytest.raises(error, match=message):
                call_layer(cls, **{"rng": rng} | options)
    assert rng.state_dict() == {"seed": 8, "call": 0}


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("cls", CLASSES)
def test_a_wrong_gradient_is_told_before_anything_is_written(cls, activation):
    y, backprop = call(cls, cls.function.vjp, activation=activation, rng=Stream(0, 0))
    dy, line = np.ones_like(y), np.ones(y.size + 1, np.float32)
    want = [np.array(gradient) for gradient in np.atleast_2d(backprop(dy))]
    read_only = dy.copy()
    read_only.flags.writeable = False
    wrong = [
        ({"dy": [1.0]}, TypeError, "dy must be a NumPy, CuPy or Numba array"),
        ({"dy": dy.astype(np.float64)}, ValueError, "dy must be a NumPy array of dtype float32 and shape "),
        ({"dy": dy[:-1]}, ValueError, "dy must be a NumPy array of dtype float32 and shape "),
        ({"out": [1.0]}, TypeError, "out must be a NumPy, CuPy or Numba array"),
        ({"out": dy.astype(np.float64)}, ValueError, "out must be a NumPy array of dtype float32 and shape "),
        ({"out": read_only}, ValueError, "out must be writable, got a read-only array"),
        ({"dy": line[1:].reshape(y.shape), "out": line[:-1].reshape(y.shape)}, ValueError, "out must be dy itself or"),
    ]
    for changes, error, message in wrong:
        with pytest.raises(error, match=f"^{message}"):
            backprop(**{"dy": dy} | changes)
    assert (line == 1).all() and (dy == 1).all() and (read_only == 1).all()
    for got, gradient in zip(np.atleast_2d(backprop(dy)), want, strict=True):
        np.testing.assert_array_equal(got, gradient)


X = np.arange(1, 25, dtype=np.float32).reshape(4, 6)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (TypeError, "shape must be an integer or a tuple of integers, got 2.5", lambda: gpudrop.keep_mask(2.5, 0.5)),
        (TypeError, "shape must be .*, got None", lambda: gpudrop.keep_mask(None, 0.5)),
        (TypeError, "shape must be .*, got '12'", lambda: gpudrop.keep_mask("12", 0.5)),
        (TypeError, r"shape must be .*, got \(2, 3.0\)", lambda: gpudrop.keep_mask((2, 3.0), 0.5)),
        (ValueError, r"shape must not be negative, got \(2, -1\)", lambda: gpudrop.keep_mask((2, -1), 0.5)),
        (ValueError, "p must be between 0 and 1, got nan", lambda: gpudrop.keep_mask(3, np.nan)),
        (TypeError, "p must be a number between 0 and 1, got None", lambda: gpudrop.keep_mask(3, None)),
        (ValueError, "bits must be one of 8, 16, 32, got 4", lambda: gpudrop.keep_mask(3, 0.5, bits=4)),
        (TypeError, "start must be an integer, got 1.5", lambda: gpudrop.keep_mask(3, 0.5, start=1.5)),
        (ValueError, r"start must be between 0 and 2\*\*64 - 1, got -1", lambda: gpudrop.keep_mask(3, 0.5, start=-1)),
        (TypeError, "like must be a NumPy, CuPy or Numba array", lambda: gpudrop.keep_mask(3, 0.5, like=[1.0])),
        (TypeError, f"{RNG}int", lambda: gpudrop.keep_mask(3, 0.5, 7)),
        (ValueError, "unknown backend 'gpu'", lambda: gpudrop.keep_mask(3, 0.5, backend="gpu")),
        (TypeError, "fn must be a function of x, got NoneType", lambda: gpudrop.mc_samples(None, X, 3)),
        (ValueError, "n must be at least 1, got 0", lambda: gpudrop.mc_samples(abs, X, 0)),
        (ValueError, "x must have a first axis", lambda: gpudrop.mc_samples(abs, [1.0], 3)),
        (TypeError, "batch_size must be an integer", lambda: gpudrop.mc_samples(abs, X, 3, batch_size=1.5)),
        (TypeError, "first must be an integer", lambda: gpudrop.mc_samples(abs, X, 3, first=None)),
        (TypeError, f"{RNG}str", lambda: gpudrop.mc_samples(abs, X, 3, "seed")),
        (TypeError, "seed must be an integer, got '3'", lambda: gpudrop.manual_seed("3")),
        (TypeError, "seed must be an integer, got None", lambda: gpudrop.manual_seed(None)),
        (ValueError, r"seed must be between 0 and 2\*\*64 - 1, got 1844", lambda: gpudrop.manual_seed(2**64)),
        (TypeError, r"seed must be an integer, got np.float32\(3.0\)", lambda: Generator(np.float32(3))),
        (ValueError, r"seed must be between 0 and 2\*\*64 - 1, got -1", lambda: Generator(-1)),
        (TypeError, "call must be an integer, got None", lambda: Stream(0, None)),
        (ValueError, r"call must be between 0 and 2\*\*64 - 1, got -1", lambda: Stream(0, -1)),
        (TypeError, "n must be an integer, got 1.5", lambda: generator.check_rng(None).spawn(1.5)),
        (ValueError, r"n must be at most 2\*\*32, got 4294967297", lambda: generator.check_rng(None).spawn(2**32 + 1)),
        (TypeError, "p must be a number between 0 and 1, got '0.5'", lambda: gpudrop.quantize("0.5")),
        (ValueError, "bits must be one of 8, 16, 32, got 7", lambda: gpudrop.quantize(0.5, 7)),
        (TypeError, "depth must be an integer, got 1.5", lambda: gpudrop.drop_path_rates(0.5, 1.5)),
        (TypeError, "samples must be an integer, got 1.5", lambda: gpudrop.drop_connect(X, samples=1.5)),
        (ValueError, r"unknown curve \['linear'\]; known: ", lambda: schedules.Schedule(0, 1, 5, ["linear"])),
        (ValueError, "p must be between 0 and 1, got 3.0", lambda: gpudrop.Dropout(schedules.constant(3))(X)),
        (ValueError, "mask_shape must broadcast", lambda: gpudrop.Dropout(mask_shape=(None, 2))(X)),
        (TypeError, "mask_shape must be a tuple of", lambda: gpudrop.Dropout(mask_shape=("a",))(X)),
        (ValueError, "the truth value|The truth value", lambda: gpudrop.dropout(X, training=np.array([True, False]))),
        (ValueError, "unknown variant 'dropout9'; known: ", lambda: gpudrop.warmup(variant="dropout9")),
        (ValueError, "unknown backend 'gpu'", lambda: gpudrop.warmup(["relu"], backend="gpu")),
    ],
)
def test_the_other_functions_tell_what_is_wrong_and_draw_nothing(error, message, call):
    before, state = X.copy(), gpudrop.manual_seed(0).state_dict()
    with pytest.raises(error, match=f"^({message})"):
        call()
    np.testing.assert_array_equal(X, before)
    assert generator.check_rng(None).state_dict() == state


def test_a_probability_is_checked_where_dropout_is_off():
    with gpudrop.no_dropout():
        with pytest.raises(ValueError, match="p must be between 0 and 1, got 2"):
            gpudrop.keep_mask(3, 2)
        with pytest.raises(ValueError, match="p must be between 0 and 1, got 2"):
            gpudrop.dropout(X, 2)


@pytest.mark.parametrize("p", [True, np.True_, 1, np.uint8(1), np.float16(1), np.array(1.0), np.array(1)])
def test_whatever_numpy_and_pytorch_take_as_a_number_is_one(p):
    np.testing.assert_array_equal(gpudrop.dropout(X, p), np.zeros_like(X))
    assert gpudrop.Dropout(p).p == 1.0 and type(gpudrop.Dropout(p).p) is float


INTERLEAVED = {
    "every other element": (lambda a: a.reshape(-1)[::2], lambda a: a.reshape(-1)[1::2]),
    "every other element, from the end": (lambda a: a.reshape(-1)[::2], lambda a: a.reshape(-1)[::-2]),
    "columns": (lambda a: a[:, :5], lambda a: a[:, 5:]),
    "every other column": (lambda a: a[:, ::2], lambda a: a[:, 1::2]),
    "transposed": (lambda a: a[:6, ::2].T, lambda a: a[:6, 1::2].T),
    "rows of a transposed array": (lambda a: a.T[:5], lambda a: a.T[5:]),
}


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("views", INTERLEAVED)
def test_interleaved_arrays_that_share_no_element_are_apart(views, activation):
    """Between the bounds of x as they are, they are neither x nor overlap it."""
    base = np.arange(1, 81, dtype=np.float32).reshape(8, 10)
    (take, target), keep = INTERLEAVED[views], {"activation": activation, "rng": Stream(2, 2)}
    x, out = take(base), target(base)
    before, dy = x.copy(), np.full_like(x, 3)
    want, want_backprop = gpudrop.dropout_vjp(before, **keep)
    y, backprop = gpudrop.dropout_vjp(x, out=out, **keep)
    assert y is out
    np.testing.assert_array_equal(out, want)
    np.testing.assert_array_equal(x, before)
    both = np.zeros_like(base)
    dy, dx = take(both), target(both)
    dy[...] = 3
    assert backprop(dy, out=dx) is dx
    np.testing.assert_array_equal(dx, want_backprop(np.full_like(before, 3)))
    assert (dy == 3).all()


# The cache

CACHE = """
import resource, sys, warnings
import numba.core.caching as caching
import numpy as np
import gpudrop
if sys.argv[1] == "full":  # from here on, files longer than that can't be written
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
if sys.argv[1] == "nowhere":
    for locator in caching.CacheImpl._locator_classes:
        locator.from_function = classmethod(lambda cls, function, path: None)
x = np.ones((4, 3), np.float32)
y, backprop = gpudrop.dropout_vjp(x, 0.5, activation="relu", rng=gpudrop.Stream(0, 0))
assert np.array_equal(y, backprop(x)) and np.array_equal(y != 0, gpudrop.keep_mask((4, 3), 0.5, gpudrop.Stream(0, 0)))
print(y.sum())
"""
WARNING = "RuntimeWarning: Numba's cache can't be used ("
ADVICE = "): every process compiles anew; NUMBA_CACHE_DIR names a folder that can be written to"


def warned_once(done):
    lines = [line for line in done.stderr.splitlines() if "Warning" in line]
    assert len(lines) == 1, done.stderr
    assert WARNING in lines[0] and lines[0].endswith(ADVICE)


def test_without_a_place_for_the_cache_it_works_and_says_so_once():
    warned_once(run(CACHE, "nowhere", clean=False))


def test_a_cache_that_cannot_be_in_its_folder_is_elsewhere_or_nowhere(tmp_path):
    """Beneath a file there is no folder, whoever the user is. Numba then takes its default place, if it can."""
    (tmp_path / "file").write_text("")
    done = run(CACHE, "as it is", clean=False, NUMBA_CACHE_DIR=tmp_path / "file" / "folder")
    if done.stderr:
        warned_once(done)


@pytest.mark.skipif(sys.platform == "win32", reason="no limits for files")
@pytest.mark.parametrize("room", [0, 1000, 20_000])
def test_a_full_disk_is_told_once(tmp_path, room):
    """Room for nothing, for indices alone, and for half of a kernel."""
    warned_once(run(CACHE, "full", room, clean=False, NUMBA_CACHE_DIR=tmp_path, PYTHONDONTWRITEBYTECODE=1))
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size > max(room, 1)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    run(CACHE, "as it is", NUMBA_CACHE_DIR=folder)
    return folder


DAMAGES = {
    "index cut off": ("nbi", lambda data: data[: len(data) // 2]),
    "kernel cut off": ("nbc", lambda data: data[: len(data) // 2]),
    "kernel of zeros": ("nbc", lambda data: bytes(len(data))),
    "text": ("nb?", lambda data: b"not a cache"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_of_the_cache_are_told_once(cache, tmp_path, damage):
    kind, change = DAMAGES[damage]
    folder = shutil.copytree(cache, tmp_path / "cache")
    damaged = list(folder.rglob(f"*.{kind}"))
    for path in damaged:
        path.write_bytes(change(path.read_bytes()))
    assert len(damaged) >= 3
    warned_once(run(CACHE, "as it is", clean=False, NUMBA_CACHE_DIR=folder))


# The driver

DRIVER = """
#include <dlfcn.h>
#include <string.h>
#ifndef NOTHING
int cuInit(unsigned flags) { return STATUS; }
int cuDriverGetVersion(int *version) { return *version = VERSION, 0; }
int cuDeviceGetCount(int *count) { return *count = 0, 0; }
#endif
#if VERSION >= 12000
int cuGetProcAddress_v2(const char *name, void **function, int version, unsigned long long flags, int *status) {
  int known = !strcmp(name, "cuInit") || !strcmp(name, "cuDriverGetVersion") || !strcmp(name, "cuDeviceGetCount");
  Dl_info here;
  dladdr(cuInit, &here);
  *function = known ? dlsym(dlopen(here.dli_fname, RTLD_NOW), name) : 0;
  if (status) *status = !known;
  return known ? 0 : 500;
}
#endif
"""
# How each is made, or what it says; and what CuPy and Numba then say.
DRIVERS = {
    "no device": (["STATUS=100", "VERSION=13000"], "no CUDA-capable device", "CUDA_ERROR_NO_DEVICE"),
    "another kernel module": (["STATUS=803", "VERSION=13000"], "unsupported display driver", "DRIVER_MISMATCH"),
    "an unknown error": (["STATUS=999", "VERSION=13000"], "unknown error", "CUDA_ERROR_UNKNOWN"),
    "of CUDA 11": (["STATUS=0", "VERSION=11000"], "driver version is insufficient", "older than CUDA 12"),
    "of CUDA 12": (["STATUS=0", "VERSION=12000"], "", "too old for CUDA|no CUDA GPU"),
    "of today, without devices": (["STATUS=0", "VERSION=13000"], "", "no CUDA GPU"),
    "without functions": (["NOTHING", "VERSION=0"], "driver version is insufficient", "broken"),
    "a text": ("not a library", "driver version is insufficient", "no CUDA GPU and driver"),
    "an empty file": ("", "driver version is insufficient", "no CUDA GPU and driver"),
    "no file": (None, "driver version is insufficient", "no CUDA GPU and driver"),
}

WITH_DRIVER = """
import numpy as np
import pytest
import gpudrop
from gpudrop import backends
x = np.ones(64, np.float32)
class Device:
    __cuda_array_interface__ = dict(shape=(64,), typestr="<f4", data=(1 << 20, False), version=3, strides=None)
class Exporter:
    __dlpack_device__ = staticmethod(lambda: (2, 0))
    def __dlpack__(self, **options):
        raise BufferError("nothing there")
for of, protocol in ((Device, "__cuda_array_interface__"), (Exporter, "DLPack")):
    for name, call in {
        "x": lambda: gpudrop.dropout(of()),
        "out": lambda: gpudrop.dropout(x, out=of()),
        "like": lambda: gpudrop.keep_mask(3, 0.5, like=of()),
        "dy": lambda: gpudrop.dropout_vjp(x)[1](of()),
    }.items():
        with pytest.raises(TypeError, match=f"^{name} can't be read through {protocol}: "):
            call()
reasons = [backends.load(name) for name in ("cupy_elementwise", "numba_cuda")]
for name, reason in zip(("cupy_elementwise", "numba_cuda"), reasons):
    with pytest.raises(RuntimeError) as error:
        gpudrop.warmup(["relu"], backend=name)
    assert str(error.value) == f"backend '{name}' can't serve: {reason}"
    print(reason)
with pytest.raises(RuntimeError) as error:
    gpudrop.Generator(0, device=True)
assert str(error.value).startswith("no CUDA device can be used: ") and all(r in str(error.value) for r in reasons)
y, backprop = gpudrop.dropout_vjp(x, 0.5, rng=gpudrop.Stream(0, 0))
assert np.array_equal(y != 0, gpudrop.keep_mask(64, 0.5, gpudrop.Stream(0, 0))) and np.array_equal(backprop(x), y)
"""


def has_driver():
    try:
        return bool(ctypes.CDLL("libcuda.so.1"))
    except OSError:
        return False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a driver is a library by another name elsewhere")
@pytest.mark.parametrize("name", DRIVERS)
def test_a_driver_that_does_not_work_is_explained(tmp_path, name):
    pytest.importorskip("cupy", reason="CuPy is not installed", exc_type=ImportError)
    pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")
    made, *said = DRIVERS[name]
    library = tmp_path / "libcuda.so.1"
    if isinstance(made, list):
        if shutil.which("cc") is None:
            pytest.skip("there is no C compiler")
        defined = [f"-D{value}" for value in made]
        command = ["cc", "-shared", "-fPIC", *defined, "-D_GNU_SOURCE", "-x", "c", "-", "-o", library, "-ldl"]
        subprocess.run(command, input=DRIVER, text=True, check=True)
    elif has_driver():
        pytest.skip("this machine has a driver, which is then found")
    elif made is not None:
        library.write_text(made)
    libraries = os.pathsep.join([str(tmp_path), os.environ.get("LD_LIBRARY_PATH", "")])
    environment = {"LD_LIBRARY_PATH": libraries, "NUMBA_ENABLE_CUDASIM": 0, "COLUMNS": 400}
    for reason, words in zip(run(WITH_DRIVER, **environment).stdout.splitlines(), said, strict=True):
        assert re.search(words, reason), reason
    info = run("from gpudrop.cli import app; app()", "info", **environment, clean=False)
    rows = {row.split()[1]: row for row in info.stdout.splitlines() if " no: " in row or " yes, on " in row}
    assert [" yes, on " in rows[name] for name in ("cpu", "cupy_elementwise", "numba_cuda")] == [True, False, False]
    for name, words in zip(("cupy_elementwise", "numba_cuda"), said, strict=True):
        assert re.search(words, rows[name])
    assert "Traceback" not in info.stdout + info.stderr


@pytest.mark.parametrize("error", [ImportError("no such symbol"), OSError("cannot open"), AttributeError("cuInit")])
def test_whatever_the_import_of_a_backend_raises_is_its_reason(monkeypatch, error):
    def fail(name):
        raise error

    monkeypatch.setattr(backends.importlib, "import_module", fail)
    assert backends.load.__wrapped__("numba_cuda") == f"it can't be imported ({error})"


# States

ELSEWHERE = """
import json, pickle, sys
import gpudrop
from gpudrop import layers
results = []
for kind, saved, inputs in pickle.load(open(sys.argv[1], "rb")):
    if kind == "json":
        name, state, p = json.loads(saved)
        layer = getattr(layers, name)(p, rng=gpudrop.Generator(0))
        layer.load_state_dict(state)
    else:
        layer = pickle.loads(saved)
    results.append((layer(*inputs), layer.state_dict(), repr(layer)))
pickle.dump(results, open(sys.argv[2], "wb"))
"""


def test_layers_go_on_in_another_process(tmp_path):
    """Pickled, copied and pickled, or from a state in JSON, with a schedule and without, at the next mask."""
    saved, want = [], []
    for cls in CLASSES:
        for p in (0.4, schedules.linear(0.1, 0.5, 10)):
            layer = cls(p, rng=Generator(2**64 - 1, False), activation="silu")
            inputs = arrays(layer)
            layer.step = 7
            layer(*inputs)
            for kind in ("pickle", "copy", "json"):
                if kind == "json":
                    layer = cls(p, rng=layer.rng)  # with options as there
                    layer.step = 7
                    how = json.dumps([cls.__name__, layer.state_dict(), 0.2])
                else:
                    how = pickle.dumps(copy.deepcopy(layer) if kind == "copy" else layer)
                saved.append((kind, how, inputs))
                want.append((layer, inputs))
    (tmp_path / "saved").write_bytes(pickle.dumps(saved))
    run(ELSEWHERE, tmp_path / "saved", tmp_path / "results")
    results = pickle.loads((tmp_path / "results").read_bytes())
    for (y, state, text), (layer, inputs) in zip(results, want, strict=True):
        layer.rng.load_state_dict({"seed": 2**64 - 1, "call": 1})
        np.testing.assert_array_equal(y, layer(*inputs))
        assert state == layer.state_dict() and text == repr(layer)


def test_generators_go_on_in_another_process(tmp_path):
    rng = Generator(2**64 - 1)
    rng.load_state_dict({"seed": 2**64 - 1, "call": 2**63 + 5})
    saved = [pickle.dumps(rng), pickle.dumps(copy.deepcopy(rng)), pickle.dumps(rng.next())]
    (tmp_path / "saved").write_bytes(pickle.dumps(saved))
    code = """
import json, pickle, sys
rng, twin, stream = map(pickle.loads, pickle.load(open(sys.argv[1], "rb")))
print(json.dumps([rng.next() == twin.next() == stream, rng.state_dict()]))
"""
    assert json.loads(run(code, tmp_path / "saved").stdout) == [True, rng.state_dict()]


GOOD = {"seed": 3, "call": 4}
NEWER = [
    ("generator", Generator(1), {**GOOD, "rounds": 7}),
    ("layer", layers.DropPath(0.25, rng=Generator(1)), {"p": 0.1, "step": 1, "rng": GOOD, "rounds": 7}),
    ("layer", layers.Dropout(0.25, rng=Stream(1, 1)), {"p": 0.1, "step": 1, "rng": GOOD, "rounds": 7}),
    ("generator", layers.Zoneout(rng=Generator(1)), {"p": 0.1, "step": 1, "rng": {**GOOD, "rounds": 7}}),
    ("stream", layers.Dropout(rng=Stream(1, 1)), {"p": 0.1, "step": 1, "rng": {**GOOD, "rounds": 7}}),
    (
        "schedule",
        layers.Dropout2d(rng=Generator(1)),
        {"p": {"first": 0, "last": 1, "steps": 5, "curve": "linear", "rounds": 7}, "step": 1, "rng": GOOD},
    ),
]


@pytest.mark.parametrize(("of", "loader", "state"), NEWER)
def test_a_newer_versions_state_is_refused_by_name_and_changes_nothing(of, loader, state):
    before = copy.deepcopy(loader.state_dict())
    words = f"the state of a {of} has 'rounds', which gpudrop {version('gpudrop')} doesn't know; it may be of a newer v"
    with pytest.raises(ValueError, match=f"^{re.escape(words)}"):
        loader.load_state_dict(state)
    assert loader.state_dict() == before


@pytest.mark.parametrize(
    ("of", "saved", "change"),
    [
        ("generator", Generator(1), lambda state: {**state, "rounds": 7}),
        ("schedule", schedules.linear(0, 1, 5), lambda state: {**state, "rounds": 7}),
        ("Dropout layer", layers.Dropout(), lambda state: {**state, "options": {**state["options"], "rounds": 7}}),
    ],
)
def test_what_a_newer_version_pickled_is_refused_by_name(monkeypatch, of, saved, change):
    cls, state = type(saved), getattr(saved, "__getstate__", lambda: vars(saved))()
    assert pickle.loads(pickle.dumps(saved)) is not saved
    monkeypatch.setattr(cls, "__getstate__", lambda self: change(state), raising=False)
    data = pickle.dumps(saved)
    with pytest.raises(ValueError, match=f"the state of a {of} has 'rounds', which gpudrop "):
        pickle.loads(data)


@pytest.mark.parametrize("state", [None, [], "seed", 3, {"seed": 3}, {"call": 3}, {}, {3: 4, "seed": 1, "call": 0}])
def test_what_is_no_state_is_refused_and_changes_nothing(state):
    rng, layer = Generator(1), layers.Dropout(0.5, rng=Generator(2))
    before = layer.state_dict()
    for load in (rng.load_state_dict, rng.__setstate__, layer.load_state_dict):
        with pytest.raises((TypeError, ValueError), match=r"^the state of a (generator|layer) (must be|has)"):
            load(state)
    with pytest.raises((TypeError, ValueError), match=r"^the state of a generator (must be|has)"):
        layer.load_state_dict({**before, "rng": state})
    assert rng.state_dict() == {"seed": 1, "call": 0} and layer.state_dict() == before
