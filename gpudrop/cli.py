"""The command line: gpudrop demo, gpudrop info, gpudrop selftest, gpudrop bench, gpudrop warmup, gpudrop bits.

A command raises an exception, and `main` prints it as one line.
"""

import importlib
import os
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from gpudrop.version import VERSION

app = typer.Typer(help="Dropout with one mask everywhere.", no_args_is_help=True, add_completion=False)


def main() -> None:
    """Run the program; any error is printed as one line on standard error, with exit status 1."""
    if sys.stdout is None:
        _fail(OSError("standard output is closed"))
    try:
        try:
            app()
        finally:
            sys.stdout.flush()  # here, because an error can't be handled while Python exits
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # rich and click exit on it without a message
            _fail(end.__context__)
        raise
    except (ImportError, MemoryError, OSError, RuntimeError, RuntimeWarning, TypeError, ValueError) as error:
        _fail(error)


def _fail(error: BaseException) -> NoReturn:
    _give_up_output()
    what = str(error) or type(error).__name__  # Python's own MemoryError has no message
    if isinstance(error, BrokenPipeError):
        what = "broken pipe: the reader closed standard output"
    sys.exit(f"{' '.join(['gpudrop', *sys.argv[1:2]])}: {what}")


def _give_up_output() -> None:
    """Discard output that can't be written, so that Python does not try again as it exits."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _show_version(asked: bool) -> None:
    if asked:
        print(f"gpudrop {VERSION}")  # noqa: T201
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None: ...


@app.command()
def demo(
    picture: Annotated[
        Path | None,
        typer.Option(help="The file for the picture. Not with --torch.", show_default="gpudrop-demo.png"),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(min=1, help="How many times to train each network.", show_default="8; 4 with --torch"),
    ] = None,
    torch: Annotated[
        bool, typer.Option("--torch", help="Train a transformer in PyTorch, with PyTorch's and with gpudrop's dropout.")
    ] = False,
) -> None:
    """Train a network with and without dropout and show the difference; with --torch, compare the speed too."""
    if torch and picture:
        raise typer.BadParameter("it can't be combined with --torch", param_hint="--picture")
    given = {"picture": picture, "seeds": seeds}
    run = importlib.import_module("gpudrop.torch.demo" if torch else "gpudrop.demo").run
    run(**{name: value for name, value in given.items() if value is not None})


@app.command()
def info() -> None:
    """Show the versions, the devices and the backends, and why a backend is not available."""
    from rich.console import Console
    from rich.table import Table

    from gpudrop import arrays, backends

    versions = Table("package", "version", title="Versions")
    versions.add_row("gpudrop", VERSION)
    for package in ("numpy", "numba", "ml_dtypes", "cupy", "numba-cuda"):
        versions.add_row(package, _version(package))
    serving = Table("backend", "arrays", "state", title="Backends")
    for name, kind in backends.BACKENDS.items():
        module = backends.load(name)
        state = f"no: {module}" if isinstance(module, str) else f"yes, on {', '.join(module.devices())}"
        serving.add_row(name, f"{arrays.KINDS[kind]}s", state)
    console = Console()
    console.print(versions)
    console.print(serving)


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    names = ("cupy-cuda13x", "cupy-cuda12x", "cupy") if package == "cupy" else (package,)
    for name in names:
        try:
            return f"{version(name)} ({name})" if name != package else version(name)
        except PackageNotFoundError:
            pass
    return "not installed"


@app.command()
def selftest(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer cases and smaller samples, in a few seconds.")] = False,
    json: Annotated[Path | None, typer.Option(help="Also write the results to this file.", metavar="FILE")] = None,
    backend: Annotated[str | None, typer.Option(help="The backend to test. Default: all available ones.")] = None,
) -> None:
    """Check that the backends on this machine draw the right masks, and random ones; if not, exit status 1."""
    from gpudrop.testing.selftest import main

    raise typer.Exit(main(backend, quick, json))


@app.command()
def bench(
    json: Annotated[Path | None, typer.Option(help="Also write the results to this file.", metavar="FILE")] = None,
) -> None:
    """Compare the speed of dropout on this machine with a copy, NumPy or CuPy, and PyTorch, in about a minute.

    It measures CuPy arrays if a GPU is available, and NumPy arrays otherwise.

    Each result is compared with the reference first. Exit status 1: gpudrop's own results are wrong.
    """
    from gpudrop.testing.benchmark.comparison import main

    main(json)


@app.command()
def warmup(
    activations: Annotated[list[str] | None, typer.Argument(help="The activations. Default: all.")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="May be repeated. Default: float32.")] = None,
    bits: Annotated[
        int | None, typer.Option(help="Random bits per element.", show_default="the variant's default")
    ] = None,
    variant: Annotated[
        list[str] | None, typer.Option(help="May be repeated; all: every variant. Default: dropout.")
    ] = None,
    row: Annotated[
        list[str] | None, typer.Option(help="bias or gain, if calls have it; may be repeated. Default: none.")
    ] = None,
    backend: Annotated[str, typer.Option(help="cpu, or cupy_elementwise on a GPU.")] = "cpu",
) -> None:
    """Compile kernels into the cache on disk, so that later processes need not wait for the compiler."""
    from rich.progress import track

    from gpudrop.variants import FAMILY, ROWS
    from gpudrop.warming import NAMES, warmup

    names = variant or ["dropout"]
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # a cache that can't be written makes this command useless
        for name in NAMES if "all" in names else names:
            # All variants means those rows that each has. A name that none has is an error.
            rows = [each for each in row or () if "all" not in names or each in FAMILY[name].rows or each not in ROWS]
            options: dict[str, Any] = {"bits": bits, "variant": name, "rows": rows, "backend": backend}
            warmup(activations, dtypes=dtype or ["float32"], **options, progress=partial(track, description=name))


@app.command()
def bits(
    seed: Annotated[int, typer.Option(min=0, max=2**64 - 1)] = 0,
    call: Annotated[int, typer.Option(min=0, max=2**64 - 1)] = 0,
    count: Annotated[int | None, typer.Option(min=0, help="The number of bytes. Default: no limit.")] = None,
) -> None:
    """Write the raw random bytes of a stream to standard output, as input for a statistical test suite."""
    from gpudrop.generator import Stream
    from gpudrop.kernels.cpu import random_bytes

    stream, position = Stream(seed, call), 0
    try:
        while count is None or position < count:
            block = random_bytes(stream, position // 16, 1 << 16)
            sys.stdout.buffer.write(block if count is None else block[: count - position])
            position += len(block)
        sys.stdout.buffer.flush()
    except BrokenPipeError:  # not an error here: the reader has enough bytes
        _give_up_output()
