"""The demo of gpudrop.torch: three networks that differ only in their dropout, and the printed conclusion."""

import dataclasses
import io
import sys

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import torch.nn.functional as F  # noqa: E402

from gpudrop.cli import app, main  # noqa: E402
from gpudrop.torch import demo  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def small():
    with pytest.MonkeyPatch.context() as patch:
        sizes = {"WIDTH": 16, "HEADS": 2, "HIDDEN": 32, "LAYERS": 1, "LENGTH": 8, "BATCH": 4}
        for name, size in (sizes | {"TRAIN_BYTES": 400, "TEST_BYTES": 300}).items():
            patch.setattr(demo, name, size)
        yield


@pytest.fixture(scope="module")
def ran(small):
    """A short run: its result and what it printed."""
    console = Console(file=io.StringIO(), width=500)
    return demo.run(2, console, steps=6), console.file.getvalue()


def numbers(validation, times=((1, 1), (2, 2), (1.5, 1.5))):
    """A Result with these validation losses, by way and by seed."""
    validation = np.array(validation, float)
    return demo.Result(np.array(times)[..., None] / 1e3, np.stack([validation / 2, validation], axis=-1), 1.0)


def test_networks_of_a_seed_start_equal_and_other_seeds_differ():
    first, *others = (network.state_dict() for network in demo.networks(3))
    assert len(others) == len(demo.WAYS) - 1
    for other in others:
        assert first.keys() == other.keys()
        assert all(torch.equal(first[name], other[name]) for name in first)
    assert not torch.equal(first["scores.weight"], demo.networks(4)[0].state_dict()["scores.weight"])


def test_only_the_reference_drops_nothing():
    without, *others = demo.networks(0)
    assert all(m.p == 0 for m in without.modules() if isinstance(m, torch.nn.Dropout))
    for network in others:
        assert all(m.p == demo.DROP for m in network.modules() if isinstance(m, torch.nn.Dropout))
        assert all(layer.self_attn.dropout == demo.DROP for layer in network.layers)


def test_all_ways_see_the_same_batches_in_turn(monkeypatch):
    seen, step = [], demo.take_step

    def noting(way, network, optimizer, batch):
        seen.append((way, batch))
        return step(way, network, optimizer, batch)

    monkeypatch.setattr(demo, "take_step", noting)
    text, test_text = demo.texts()
    demo.fit(text, test_text, 0, 4, lambda: None)
    assert [way for way, _ in seen] == 4 * list(demo.WAYS)
    inputs = [torch.stack(batch) for _, batch in seen]
    for number in range(0, len(inputs), 3):
        assert torch.equal(inputs[number], inputs[number + 1]) and torch.equal(inputs[number], inputs[number + 2])
    assert not torch.equal(inputs[0], inputs[3])


def test_batches_are_pieces_of_the_text_and_their_next_bytes():
    text = torch.arange(50)
    (x, y), _ = demo.batches(text, 0, 2)
    assert x.shape == y.shape == (demo.BATCH, demo.LENGTH)
    assert torch.equal(y, x + 1)
    assert torch.equal(x, x[:, :1] + torch.arange(demo.LENGTH))


def test_predictions_do_not_depend_on_later_bytes():
    network = demo.networks(0)[0]
    x = torch.randint(256, (1, demo.LENGTH))
    other = x.clone()
    other[0, 5] += 1
    scores, changed = network(x), network(other)
    torch.testing.assert_close(scores[0, :5], changed[0, :5])
    assert (scores[0, 5:] != changed[0, 5:]).any(dim=1).all()


def test_the_texts_have_no_paragraph_in_common(monkeypatch):
    monkeypatch.setattr(demo, "TRAIN_BYTES", 40_000)
    monkeypatch.setattr(demo, "TEST_BYTES", 40_000)
    text, test_text = (bytes(part.tolist()).split(b"\n\n")[1:-1] for part in demo.texts())
    assert len(text) > 100 and len(test_text) > 100
    assert not set(text) & set(test_text)


@pytest.mark.parametrize("way", demo.WAYS)
def test_each_way_draws_through_its_own_operators(way):
    network, text = demo.networks(0)[demo.WAYS.index(way)], demo.texts()[0]
    optimizer, torchs = torch.optim.SGD(network.parameters(), lr=0.1), F.dropout
    with torch.profiler.profile() as profile:
        demo.take_step(way, network, optimizer, next(demo.batches(text, 0, 1)))
    names = {event.key for event in profile.key_averages()}
    drawing = {"torch's dropout": {"aten::bernoulli_"}, "gpudrop": {"gpudrop::forward", "gpudrop::backward"}}
    assert names & set().union(*drawing.values()) == drawing.get(way, set())
    assert F.dropout is torchs


def test_run_returns_finite_figures(ran):
    result, printed = ran
    assert result.times.shape == (3, 2, 6)
    assert (result.times > 0).all()
    assert result.losses.shape == (3, 2, 2)
    assert np.isfinite(result.losses).all()
    assert (result.losses < np.log(256) + 0.1).all()  # better than uniform guesses
    assert len({*result.losses[:, 0, 1]}) == 3  # each way draws its own masks
    assert result.slowdowns[0] == 1
    for text in (*demo.WAYS, demo.conclusion(result), "2 seeds of 6 steps"):
        assert text in printed


@pytest.mark.slow
def test_run_is_reproducible_and_leaves_torchs_generator_unchanged(ran):
    before = torch.get_rng_state()
    again = demo.run(1, Console(file=io.StringIO()), steps=6)
    np.testing.assert_allclose(again.losses[:, 0], ran[0].losses[:, 0], rtol=1e-4)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_conclusion_follows_the_numbers():
    agreeing = numbers([[3, 3], [2, 2.2], [2.1, 2.14]])
    assert agreeing.error == pytest.approx(np.sqrt((0.02 + 0.0008) / 2))
    assert demo.conclusion(agreeing) == (
        "Torch's dropout and gpudrop's are equally good: their validation losses are 2.100 and 2.120, 0.020 apart, "
        "within two standard errors of 0.102; both are below the 3.000 without dropout, at 2.00 and 1.50 times its "
        "time per step."
    )
    disagreeing = numbers([[2.5, 2.5], [2, 2.2], [2.9, 3.1]])
    assert demo.conclusion(disagreeing) == (
        "Torch's dropout and gpudrop's are not equally good: their validation losses are 2.100 and 3.000, 0.900 apart, "
        "beyond two standard errors of 0.141; only one is below the 2.500 without dropout, at 2.00 and 1.50 times its "
        "time per step."
    )
    worse = numbers([[1, 1], [2, 2.2], [2, 2.2]])
    assert "neither is below the 1.000 without dropout" in demo.conclusion(worse)


def test_the_spread_of_a_single_seed_is_unknown():
    result = numbers([[3], [2], [2.1]], times=[[1], [2], [1.5]])
    assert np.isnan(result.error)
    assert demo.conclusion(result).startswith(
        "Whether torch's dropout and gpudrop's are equally good, a single seed can't tell: their validation losses are"
    )


def test_losses_of_nan_never_count_as_equally_good():
    lost = numbers([[3, 3], [2, 2.2], [np.nan, 2]])
    assert "are not equally good" in demo.conclusion(lost)


def test_the_slowdown_is_of_medians():
    result = numbers(np.ones((3, 2)), times=[[1, 1], [2, 2], [1.5, 1.5]])
    uneven = dataclasses.replace(result, times=np.array([[[1, 1, 9]], [[3, 3, 1]], [[2, 50, 2]]]))
    np.testing.assert_allclose(uneven.slowdowns, [1, 3, 2])


@pytest.mark.parametrize("options, given", [((), {}), (("--seeds", "5"), {"seeds": 5})], ids=["default", "seeds"])
def test_the_command_line_runs_it(monkeypatch, options, given):
    calls = []
    monkeypatch.setattr(demo, "run", lambda **options: calls.append(options))
    done = CliRunner().invoke(app, ["demo", "--torch", *options])
    assert done.exit_code == 0, done.output
    assert calls == [given]


def test_without_the_flag_the_other_demo_runs(monkeypatch):
    from gpudrop import demo as other

    calls = []
    monkeypatch.setattr(other, "run", lambda **options: calls.append(options))
    assert CliRunner().invoke(app, ["demo", "--seeds", "2"]).exit_code == 0
    assert calls == [{"seeds": 2}]


def test_a_picture_is_refused():
    done = CliRunner().invoke(app, ["demo", "--torch", "--picture", "here.png"], env={"TERM": "dumb"})
    assert done.exit_code == 2
    assert "can't be combined with --torch" in done.output


def test_a_missing_torch_is_named(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[:2] == ["gpudrop", "torch"]]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(sys, "argv", ["gpudrop", "demo", "--torch"])
    with pytest.raises(SystemExit, match=r"^gpudrop demo: gpudrop.torch needs PyTorch: install the package torch$"):
        main()


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        demo.run(0)
