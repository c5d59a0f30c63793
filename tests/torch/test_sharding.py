"""Sharded tensors: one seed trains one network on 1, 2 and 4 ranks. Ranks are processes connected by gloo."""

import itertools
import math
import sys
import tempfile
import traceback
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import torch.distributed as dist  # noqa: E402
from torch import nn  # noqa: E402

if not dist.is_available():
    pytest.skip("torch.distributed is not built", allow_module_level=True)

import gpudrop.torch  # noqa: E402
from gpudrop.torch import functional, modules  # noqa: E402
from gpudrop.variants import FAMILY  # noqa: E402
from tests.torch.neighbours import CASES  # noqa: E402

SHAPE = (5, 4, 6, 16)  # the first size is not divisible by 2 or 4
SAVES = ((None, "auto"), ("relu", "output"), ("relu", "bits"), ("leaky_relu", "bits"), ("gelu", "auto"))
SHAPES = {3: (5, 4, 16), 4: SHAPE, 5: (5, 4, 6, 2, 8)}  # by the number of dimensions


def seeded(function, *args, **options):
    torch.manual_seed(3)
    return function(*args, **options)


def numbers(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def placements_of(world, ndim):
    from torch.distributed.tensor import Replicate, Shard

    on_a_line = [((world,), (kind,)) for kind in (Replicate(), *map(Shard, range(4)))]
    square = [(Shard(0), Shard(3)), (Shard(1), Shard(2)), (Shard(3), Shard(3)), (Replicate(), Shard(2))]
    meshes = on_a_line + [((2, 2), kinds) for kinds in square if world == 4]
    return [pair for pair in meshes if all(getattr(kind, "dim", 0) < ndim for kind in pair[1])]


def check_every_variant(world):
    """Forward and backward, each rank computes its slice of the whole result, for any placement of the tensors."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import distribute_tensor

    meshes = {shape: init_device_mesh("cpu", shape) for shape in ((world,), (2, 2)) if math.prod(shape) == world}
    for name, row in FAMILY.items():
        function, size = getattr(functional, name), SHAPES[row.ndim]
        options = {"training": True} | ({"block_size": 3} if "block_size" in row.options else {})
        plain = [numbers(*size, seed=k).requires_grad_() for k, _ in enumerate(row.inputs)]
        dy = numbers(*size, seed=9)
        some = name in ("dropout", "drop_path")
        composed = FAMILY[name].is_product  # in other rounding
        saves = (("gelu", "auto"),) if composed else (("gelu", "auto"), ("leaky_relu", "bits"))
        same = torch.testing.assert_close if composed else assert_equal
        for activation, save in SAVES if some else saves:
            options["save"] = save
            want = seeded(function, *plain, 0.4, activation=activation, **options)
            gradients = torch.autograd.grad(want, plain, dy)
            for shape, kinds in placements_of(world, len(size)):
                mesh = meshes[shape]
                mine = [distribute_tensor(x.detach(), mesh, kinds).requires_grad_() for x in plain]
                y = seeded(function, *mine, 0.4, activation=activation, **options)
                what = f"{name} {activation} {save} {kinds}"
                if not row.whole:
                    assert y.placements == kinds, what
                same(y.full_tensor(), want, msg=what)
                got = torch.autograd.grad(y, mine, distribute_tensor(dy, mesh, kinds))
                for a, b in zip(got, gradients, strict=True):
                    same(a.full_tensor(), b, msg=what)


def assert_equal(got, want, msg):
    assert torch.equal(got, want), msg


def check_neighbours(world):
    """The rows are replicated, or sharded like the last axis. The masks are those of the whole tensor."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (world,))
    for case in CASES.values():
        plain = case.tensors(shape=(8, 16))
        whole = seeded(case, *plain)
        gradients = torch.autograd.grad(whole.square().sum(), plain)
        for kind in (Replicate(), Shard(0), Shard(1)):
            placements = [kind if x.dim() > 1 else Shard(0) if kind == Shard(1) else Replicate() for x in plain]
            if case.packed and kind == Shard(1):
                continue  # torch splits no sharded axis
            mine = [
                distribute_tensor(x.detach(), mesh, [of]).requires_grad_()
                for x, of in zip(plain, placements, strict=True)
            ]
            y = seeded(case, *mine)
            torch.testing.assert_close(y.full_tensor(), whole)
            got = torch.autograd.grad(y.square().sum(), mine)
            for a, b in zip(got, gradients, strict=True):
                torch.testing.assert_close(a.full_tensor(), b)


def check_wrong_tensors(world):
    """The errors are those of plain tensors, and come before a stream is drawn."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, distribute_tensor

    mesh = init_device_mesh("cpu", (world,))
    x, row, whole = (distribute_tensor(torch.ones(size), mesh, [Replicate()]) for size in ((4, 6), (6,), (4, 5)))
    before = torch.get_rng_state()
    for message, call in {
        "bias must have a value for each element": lambda: functional.dropout_add(x, x, bias=x),
        "gain must have .* dtype torch.float32 .* got torch.float64": (
            lambda: functional.dropout_add(x, x, gain=row.double())
        ),
        "residual must have the shape of input": lambda: functional.dropout_add(x, x.half()),
        "value must have the dtype and shape of input": lambda: functional.dropout_glu(x, row),
        "input without value must have an even number": lambda: functional.dropout_glu(whole),
        "residual must be a .*DTensor, because input is one": lambda: functional.dropout_add(x, torch.ones(4, 6)),
        "residual must be a .*Tensor, because input is one, got .*DTensor": (
            lambda: functional.dropout_add(torch.ones(4, 6), x)
        ),
    }.items():
        with pytest.raises((TypeError, ValueError), match=f"^{message}"):
            call()
    assert torch.equal(torch.get_rng_state(), before)


def check_partial_sums(world):
    """A partial sum is reduced before dropout."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Partial

    x = DTensor.from_local(torch.ones(40), init_device_mesh("cpu", (world,)), [Partial()])
    assert torch.equal(
        seeded(functional.dropout, x, 0.5).full_tensor(), seeded(functional.dropout, torch.ones(40) * world, 0.5)
    )


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)
        self.hidden, self.last = modules.Dropout(0.4, activation="gelu"), nn.Dropout(0.2)

    def forward(self, x):
        return self.last(self.down(self.hidden(self.up(x))))


def trained(network, gather=lambda p: p, steps=5):
    optimizer = torch.optim.SGD(network.parameters(), 0.05)
    torch.manual_seed(7)
    for _ in range(steps):
        optimizer.zero_grad()
        network(numbers(8, 16)).square().sum().backward()
        optimizer.step()
    return [gather(p.detach()) for p in network.parameters()]


def check_tensor_parallel_training(world):
    """The hidden layer is sharded by columns, and its dropout with it. nn.Dropout is rerouted."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    with gpudrop.torch.accelerate():
        want = trained(Network())
        plan = {"up": ColwiseParallel(use_local_output=False), "down": RowwiseParallel()}
        cut = parallelize_module(Network(), init_device_mesh("cpu", (world,)), plan)
        got = trained(cut, lambda p: p.full_tensor() if hasattr(p, "full_tensor") else p)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    y, whole = seeded(cut, numbers(8, 16)), seeded(Network(), numbers(8, 16))
    assert y.shape == whole.shape


def check_compiled(world):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    x = numbers(8, 16)
    mine = distribute_tensor(x, init_device_mesh("cpu", (world,)), [Shard(1)])

    for save in ("output", "bits"):

        def function(x, save=save):
            return functional.dropout(x, 0.5, activation="relu", save=save)

        def gradient(x, function=function):
            return torch.autograd.grad(function(x).square().sum(), x)[0]

        got = seeded(torch.compile(function, fullgraph=True, backend="aot_eager"), mine)
        assert torch.equal(got.full_tensor(), seeded(function, x))
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        got = seeded(gradient, mine.detach().requires_grad_(), compiled)
        assert torch.equal(got.full_tensor(), seeded(gradient, x.clone().requires_grad_()))


CHECKS = [
    check_every_variant,
    check_neighbours,
    check_wrong_tensors,
    check_partial_sums,
    check_tensor_parallel_training,
    check_compiled,
]


def run(rank, world, folder):
    """Run all checks on a rank. A failure is written to a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    for check in CHECKS:
        try:
            check(world)
        except BaseException:
            Path(folder, f"{check.__name__} on rank {rank}").write_text(traceback.format_exc())
            raise
    dist.destroy_process_group()


@pytest.mark.parametrize("rank", range(4))
def test_a_rank_draws_its_slice_of_the_mask(rank):
    """Runs in one process: each rank computes its slice of the whole result without the other ranks."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=rank, world_size=4, store=FakeStore())
    try:
        meshes = {shape: init_device_mesh("cpu", shape) for shape in ((4,), (2, 2))}
        calls = itertools.product(("dropout", "dropout2d", "locked_dropout"), ("gelu", "relu"))
        for name, activation in calls:
            options = {"activation": activation, "save": "bits" if activation == "relu" else "auto"}
            x = numbers(*SHAPE).requires_grad_()
            want = seeded(getattr(functional, name), x, 0.4, **options)
            (dx,) = torch.autograd.grad(want, x, numbers(*SHAPE, seed=9))
            for shape, kinds in placements_of(4, len(SHAPE)):
                sizes, begin = compute_local_shape_and_global_offset(SHAPE, meshes[shape], kinds)
                part = tuple(slice(a, a + n) for a, n in zip(begin, sizes, strict=True))

                def mine(whole, mesh=meshes[shape], kinds=kinds, part=part):
                    sizes = {"shape": whole.shape, "stride": whole.stride()}
                    return DTensor.from_local(whole.detach()[part].contiguous(), mesh, kinds, run_check=False, **sizes)

                distributed = mine(x).requires_grad_()
                y = seeded(getattr(functional, name), distributed, 0.4, **options)
                assert torch.equal(y.to_local(), want[part]), kinds
                (got,) = torch.autograd.grad(y, distributed, mine(numbers(*SHAPE, seed=9)))
                assert torch.equal(got.to_local(), dx[part]), kinds
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("row", FAMILY.values(), ids=FAMILY)
def test_variants_that_need_the_whole_tensor_are_replicated(row):
    from torch.distributed.tensor import Replicate, Shard

    from gpudrop.torch import sharding

    placements = [sharding._placement(row.name)(given) for given in (Shard(0), Replicate())]
    assert placements == [Replicate() if row.whole else Shard(0), Replicate()]
    if row.whole:
        with pytest.raises(ValueError, match="needs the whole array"):
            row.function(np.ones(SHAPES[row.ndim]), shard=gpudrop.Shard(SHAPES[row.ndim], (0,) * row.ndim))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="gloo's file store does not work on Windows")
@pytest.mark.parametrize("world", [1, 2, 4])
def test_training_is_the_same_on_any_number_of_ranks(world):
    with tempfile.TemporaryDirectory() as folder:
        try:
            torch.multiprocessing.spawn(run, (world, folder), nprocs=world)
        except Exception as error:
            found = [f"{file.name}: {file.read_text()}" for file in Path(folder).glob("check_*")]
            pytest.fail("\n".join(found) or str(error))
