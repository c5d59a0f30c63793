"""Imports point one way: each module of the package imports only modules that FLOORS lists before it."""

import ast

from tests import ROOT

FLOORS = (
    "version hints uninterrupted",
    "formulas formulas.philox formulas.cuda_cpp formulas.activations checks formulas.noises formulas.indexing",
    "kernels kernels.spec kernels.chunks kernels.half kernels.threads kernels.host_math kernels.device_math",
    "kernels.numba_cuda.intrinsics kernels.numba_cuda.simulator kernels.numba_cuda.operands kernels.numba_cuda.map",
    "kernels.numba_cuda.sums kernels.numba_cuda.launching",
    "kernels.cupy_elementwise.source kernels.cupy_elementwise.launching",
    "kernels.cpu.processors kernels.cpu.memory kernels.cpu.pages kernels.cpu.vectors kernels.cpu.bits",
    "kernels.cpu.blocks kernels.cpu.map kernels.cpu.compiling kernels.cpu.tiles",
    "kernels.cpu kernels.numba_cuda kernels.cupy_elementwise",
    "device.functions device.cuda device.triton device",
    "arrays backends generator masks signatures context operations plan",
    "dropout variants schedules layers warming monte_carlo",
    "testing testing.reference reference testing.ulps . testing.statistics testing.own_kernels testing.selftest demo",
    "testing.benchmark testing.benchmark.cases testing.benchmark.checks testing.benchmark.ceilings",
    "testing.benchmark.contenders testing.benchmark.runner testing.benchmark.gpu testing.benchmark.gpu_contenders",
    "testing.benchmark.records testing.benchmark.comparison cli __main__",
    "_pyinstaller _pyinstaller.hook-gpudrop",
    "torch.threads torch.activations torch.checks torch.operators torch.tracing torch.sharding torch.checkpoints",
    "torch.functional torch.modules torch.fused torch.attention torch.adoption torch torch.demo",
)
ORDER = [name for floor in FLOORS for name in floor.split()]
"""The lowest floor comes first. A dot is the package itself, whose names users import."""


def modules():
    """The files of the package, with their module names relative to it."""
    for folder, prefix in (("gpudrop", ""), ("kernels", "kernels.")):
        for path in (ROOT / folder).rglob("*.py"):
            if "kernels" not in path.relative_to(ROOT).parts[1:-1]:
                name = prefix + ".".join(path.relative_to(ROOT / folder).with_suffix("").parts)
                yield name.removesuffix("__init__").rstrip(".") or ".", path


def imported(path):
    """The modules of the package that a file imports, also within functions and for type checkers."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "gpudrop":
            module = node.module.removeprefix("gpudrop").lstrip(".")
            for name in (f"{module}.{alias.name}".lstrip(".") for alias in node.names):
                yield name if name in ORDER else module or "."
        elif isinstance(node, ast.Import):
            yield from (a.name[8:] or "." for a in node.names if a.name.split(".")[0] == "gpudrop")


def test_imports_point_one_way():
    files = dict(modules())
    assert sorted(files) == sorted(ORDER)
    wrong = {
        (name, other)
        for name, path in files.items()
        for other in imported(path)
        if ORDER.index(other) >= ORDER.index(name)
    }
    assert wrong == set()
