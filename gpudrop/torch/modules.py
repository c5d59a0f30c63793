"""Modules: torch's own dropouts with an activation and another engine, and the variants that torch lacks."""

import torch

from gpudrop.activations import find_activation
from gpudrop.random_bits import check_bits
from gpudrop.torch import functional


class Variant(torch.nn.Module):
    """A variant as a module; what a subclass is called says which.

    Parameters
    ----------
    p : float
        As for the function of `gpudrop.torch.functional`; its default without it.
    inplace : bool
        Whether the result is written into the input.
    activation : str, optional
        Applied before, in the same pass.
    generator : torch.Generator, optional
        One of the host, in the place of torch's own.
    bits : int, optional
        Random bits per element.
    **options
        The variant's own.
    """

    variant = None

    def __init__(self, p=None, inplace=False, *, activation=None, generator=None, bits=None, **options):
        super().__init__()
        layer = functional.VARIANTS[self.variant]
        defaults, own = layer.defaults(), functional.own_options(self.variant)
        for name in options:
            if name not in own:
                raise TypeError(f"{type(self).__name__} has no option {name!r}; it has {', '.join(own) or 'none'}")
        find_activation(activation)
        self.p = layer.check(layer.default() if p is None else p)
        self.inplace, self.activation, self.generator = bool(inplace), activation, generator
        self.bits = check_bits(defaults["bits"] if bits is None else bits)
        self.options = own | options

    def forward(self, *inputs):
        function = getattr(functional, self.variant)
        keywords = {"activation": self.activation, "generator": self.generator, "bits": self.bits}
        return function(*inputs, self.p, self.training, self.inplace, **keywords, **self.options)

    def extra_repr(self):
        text = f"p={self.p}, inplace={self.inplace}"
        own = functional.own_options(self.variant)
        shown = {name: value for name, value in self.options.items() if value != own[name]}
        if self.activation is not None:
            shown["activation"] = self.activation
        return ", ".join([text, *(f"{name}={value!r}" for name, value in shown.items())])


def _module(name, *bases):
    """The module of a variant, named as its layer is; bases: the torch class that it stands for."""
    layer = functional.VARIANTS[name]
    doc = f"`gpudrop.{name}` as a module: see there, and `Variant` for what all of them take."
    return type(layer.__name__, (Variant, *bases), {"variant": name, "__doc__": doc, "__module__": __name__})


Dropout = _module("dropout", torch.nn.Dropout)
Dropout1d = _module("dropout1d", torch.nn.Dropout1d)
Dropout2d = _module("dropout2d", torch.nn.Dropout2d)
Dropout3d = _module("dropout3d", torch.nn.Dropout3d)
AlphaDropout = _module("alpha_dropout", torch.nn.AlphaDropout)
FeatureAlphaDropout = _module("feature_alpha_dropout", torch.nn.FeatureAlphaDropout)
DropPath = _module("drop_path")
LockedDropout = _module("locked_dropout")
EmbeddingDropout = _module("embedding_dropout")
TokenDropout = _module("token_dropout")
ConsistentDropout = _module("consistent_dropout")
DropConnect = _module("drop_connect")
DropBlock1d = _module("dropblock1d")
DropBlock2d = _module("dropblock2d")
GaussianDropout = _module("gaussian_dropout")
UniformDropout = _module("uniform_dropout")
GaussianNoise = _module("gaussian_noise")
Zoneout = _module("zoneout")
