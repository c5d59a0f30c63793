"""Calls of dropout with neighbours, as data: a bias, a gain, a residual, a gate."""

from typing import Any, NamedTuple

import torch

import gpudrop
from gpudrop.torch import functional, operators
from gpudrop.torch.activations import TORCHS
from gpudrop.variants import FAMILY


class Case(NamedTuple):
    """A variant, the names of its tensors after input, and its options. packed: whether input contains the value."""

    variant: str
    others: tuple[str, ...]
    options: dict[str, Any]
    packed: bool = False

    @property
    def names(self):
        """The names of all tensors, in the order of their gradients."""
        return FAMILY[self.variant].inputs[0], *self.others

    def tensors(self, dtype=torch.float32, wide=None, of_rows=None, shape=(5, 6), seed=0):
        """Random tensors that require gradients; wide is the dtype of a residual, and of_rows that of rows."""
        generator = torch.Generator().manual_seed(seed)
        sizes = {"bias": shape[-1:], "gain": shape[-1:]}
        dtypes = {"bias": of_rows, "gain": of_rows, "residual": wide}
        whole = (*shape[:-1], 2 * shape[-1]) if self.packed else shape
        return tuple(
            torch.randn(sizes.get(name, whole), generator=generator, dtype=torch.float64)
            .to(dtypes.get(name) or dtype)
            .requires_grad_()
            for name in self.names
        )

    def __call__(self, *tensors, p=0.4, **options):
        return getattr(functional, self.variant)(*self._positional(tensors), p=p, **self._options(tensors, options))

    def of_arrays(self, *tensors, p=0.4, **options):
        """The result of gpudrop's function of arrays, and its backprop."""
        arrays = [operators.as_array(tensor.detach()) for tensor in tensors]
        return FAMILY[self.variant].function.vjp(*self._positional(arrays), p=p, **self._options(arrays, options))

    def reference(self, *tensors, rng, p=0.4):
        """The same from torch's operators and dropout's mask, with all derivatives."""
        options = {**self.options, "activation": self.options.get("activation", FAMILY[self.variant].activation)}
        named = dict(zip(self.names[1:], tensors[1:], strict=True))
        x = tensors[0]
        if self.packed:
            x, named["value"] = x.chunk(2, -1) if options.get("gate_first", True) else x.chunk(2, -1)[::-1]
        z = x + named.get("bias", 0)
        z = z if options["activation"] is None else TORCHS[options["activation"]].value(z)
        z = z * named.get("gain", 1) * named.get("value", 1)
        mask = functional.dropout(torch.ones_like(z), p, rng=rng, mask_shape=options.get("mask_shape"))
        return z * mask + named.get("residual", 0)

    def _positional(self, tensors):
        return tensors[: len(tensors) - len(self._rows())]

    def _rows(self):
        return [name for name in self.others if name in FAMILY[self.variant].rows]

    def _options(self, tensors, options):
        rows = self._rows()
        return {**self.options, **dict(zip(rows, tensors[len(tensors) - len(rows) :], strict=True)), **options}


CASES = {
    "bias": Case("dropout", ("bias",), {"activation": "gelu"}),
    "bias alone": Case("dropout", ("bias",), {}),
    "bias and y": Case("dropout", ("bias",), {"activation": "relu", "save": "output"}),
    "bias and bits": Case("dropout", ("bias",), {"activation": "relu", "save": "bits"}),
    "residual": Case("dropout_add", ("residual", "bias", "gain"), {"activation": "silu"}),
    "residual and bits": Case("dropout_add", ("residual", "bias"), {"activation": "leaky_relu", "save": "bits"}),
    "gain": Case("dropout_add", ("residual", "gain"), {"mask_shape": (None, 1)}),
    "gate": Case("dropout_glu", ("value",), {}),
    "packed": Case("dropout_glu", (), {}, packed=True),
    "packed, second": Case("dropout_glu", (), {"gate_first": False, "activation": "sigmoid"}, packed=True),
}
STREAM = gpudrop.Stream(2**63 + 5, 2**40 + 3)
