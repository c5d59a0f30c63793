"""A forked child works, whatever the parent's other threads were doing at that moment."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest

from gpudrop import Generator, layers
from tests.processes import run
from tests.sampling import few

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system can't fork")


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
    signal.alarm(100)  # ends a child that hangs
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


def test_a_child_forked_during_calls_of_other_threads_works():
    run(FORKS, clean=False)  # Python itself warns about such a fork


FORK_WHILE_LOCKED = """
import os, signal, sys, threading
import numpy as np
import gpudrop
from numba.core.compiler_lock import global_compiler_lock
lock = global_compiler_lock if sys.argv[1] == "compiling" else gpudrop.generator.lock
rng, forking, locked = gpudrop.Generator(3), threading.Event(), threading.Event()
gpudrop.dropout(np.ones(9, np.float32), activation="softplus", training=False)
# Hooks run last first, so the other thread releases its lock while the package's hooks already wait.
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
gpudrop.dropout(np.ones(9, np.float32), rng=rng)  # the parent works too
"""


@pytest.mark.parametrize("lock", few(["drawing", "compiling"], "drawing"))
def test_a_fork_waits_for_locks_that_would_block_the_child(lock):
    run(FORK_WHILE_LOCKED, lock, clean=False)


FORK_WITH_THREADS = """
import os
import numpy as np
import gpudrop
x = np.ones(1 << 22, np.float32)
for _ in range(os.cpu_count()):  # starts all threads that the parent ever uses
    gpudrop.dropout(x, 0.5)
threads = len(os.listdir("/proc/self/task"))
process = os.fork()
if process == 0:
    alone = len(os.listdir("/proc/self/task"))
    gpudrop.dropout(x, 0.5)
    os._exit(0 if alone == 1 < len(os.listdir("/proc/self/task")) else 3)
assert threads > 1
assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc to count the threads of a process")
@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS == 1, reason="needs more than one thread")
def test_a_forked_child_starts_threads_of_its_own():
    run(FORK_WITH_THREADS, clean=False)


FORKED = """
import os, sys
import gpudrop
if sys.argv[1] == "seeded":
    gpudrop.manual_seed(7)
gpudrop.keep_mask(64, 0.5, gpudrop.Stream(0, 0))  # compiled before the children are forked
reads = []
for _ in range(3):
    read, write = os.pipe()
    if os.fork() == 0:
        os.write(write, gpudrop.keep_mask(64, 0.5).tobytes())
        os._exit(0)
    os.wait()
    reads.append(os.read(read, 64))
reads.append(gpudrop.keep_mask(64, 0.5).tobytes())
print(len(set(reads)))
"""


@pytest.mark.parametrize(("seeded", "masks"), [("unseeded", 4), ("seeded", 1)])
def test_forked_processes_draw_different_masks_unless_seeded(seeded, masks):
    assert run(FORKED, seeded).stdout == f"{masks}\n"


WORKERS = """
import os, sys, time
import numpy as np
import gpudrop

def draw(k):
    time.sleep(0.3)  # lets another worker take the next item
    return os.getpid(), gpudrop.keep_mask(64, 0.5).tobytes()

def call(layer):
    return layer(np.ones(64)).tobytes()

def drawn(kind, n):
    if kind == "joblib":
        from joblib import Parallel, delayed
        return Parallel(n_jobs=2)(delayed(draw)(k) for k in range(n))
    if kind == "DataLoader":
        import torch
        loader = torch.utils.data.DataLoader(Items(n), batch_size=None, num_workers=2)
        return list(loader)
    import multiprocessing
    with multiprocessing.get_context(kind).Pool(2) as pool:
        return pool.map(draw, range(n), chunksize=1)

class Items:
    def __init__(self, n):
        self.n = n
    def __len__(self):
        return self.n
    def __getitem__(self, k):
        return draw(k)

if __name__ == "__main__":
    kind = sys.argv[1]
    gpudrop.keep_mask(64, 0.5, gpudrop.Stream(0, 0))  # compiled before the workers start
    masks = drawn(kind, 6)
    assert len({pid for pid, _ in masks}) == 2, masks
    assert len({mask for _, mask in masks}) == len(masks)
    forked = kind in ("fork", "DataLoader")
    if forked:
        gpudrop.manual_seed(1)
        masks = drawn(kind, 6)
        assert len({mask for _, mask in masks}) < len(masks)
    print("ok")
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fork", "spawn", "joblib", "DataLoader"])
def test_workers_draw_different_masks_unless_seeded(kind, tmp_path):
    if kind == "joblib":
        pytest.importorskip("joblib", reason="joblib is not installed")
    if kind == "DataLoader":
        pytest.importorskip("torch", reason="PyTorch is not installed")
    program = tmp_path / "program.py"
    program.write_text(WORKERS)
    done = subprocess.run([sys.executable, program, kind], capture_output=True, text=True, timeout=120)
    assert done.stdout == "ok\n", done.stderr


def test_copies_of_a_layer_draw_the_same_masks_but_spawned_generators_differ():
    x, layer = np.ones(64), layers.Dropout(0.5, rng=Generator(3))
    sent = [pickle.loads(pickle.dumps(layer)) for _ in range(3)]
    assert len({twin(x).tobytes() for twin in sent}) == 1
    spawned = [layers.Dropout(0.5, rng=pickle.loads(pickle.dumps(rng))) for rng in Generator(3).spawn(3)]
    assert len({one(x).tobytes() for one in spawned}) == 3
