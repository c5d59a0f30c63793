"""Layers for hand-written training loops."""

from gpudrop.activations import find_activation
from gpudrop.dropout import dropout_vjp
from gpudrop.generator import check_rng
from gpudrop.random_bits import check_bits, check_p


class Dropout:
    """An activation and dropout as one layer: call it forward, then `backward`.

    Parameters
    ----------
    p : float
        The probability of dropping an element, from 0 to 1; 0.5 if keep_prob isn't given either.
    keep_prob : float, optional
        1 - p, for those who think in it; give one of the two.
    activation, rng, bits
        As for `gpudrop.dropout`.

    Attributes
    ----------
    training : bool
        Whether elements are dropped; set by `train` and `eval`.

    Examples
    --------
    >>> import numpy as np, gpudrop
    >>> layer = gpudrop.Dropout(keep_prob=0.75, activation="relu", rng=gpudrop.Generator(1))
    >>> layer
    Dropout(p=0.25, activation='relu', bits=16)
    >>> x = np.float32([[-3, 3, 6, 9]])
    >>> layer(x)
    array([[ 0.,  4.,  0., 12.]], dtype=float32)
    >>> layer.backward(np.ones_like(x))
    array([[0.       , 1.3333334, 0.       , 1.3333334]], dtype=float32)
    >>> layer.eval()(x)
    array([[0., 3., 6., 9.]], dtype=float32)
    """

    def __init__(self, p=None, *, keep_prob=None, activation=None, rng=None, bits=16):
        if p is not None and keep_prob is not None:
            raise ValueError("give p or keep_prob, not both")
        if keep_prob is not None:
            p = round(1 - check_p(keep_prob, "keep_prob"), 15)  # so that 0.8 reads as p=0.2
        self.p = 0.5 if p is None else check_p(p)
        find_activation(activation)
        self.activation, self.rng, self.bits = activation, check_rng(rng), check_bits(bits)
        self.training = True
        self._backprop = None

    def __call__(self, x):
        """y = dropout(x); remembered for `backward`."""
        options = {"activation": self.activation, "training": self.training, "rng": self.rng, "bits": self.bits}
        y, self._backprop = dropout_vjp(x, self.p, **options)
        return y

    def backward(self, dy):
        """dx for dy, through the mask of the last call.

        Raises
        ------
        RuntimeError
            If the layer hasn't been called.
        """
        if self._backprop is None:
            raise RuntimeError("backward needs a call of the layer before it")
        return self._backprop(dy)

    def train(self, mode=True):
        """Drop elements from now on (or not, if mode is False); returns the layer."""
        self.training = bool(mode)
        return self

    def eval(self):
        """Drop nothing from now on; returns the layer."""
        return self.train(False)

    def __repr__(self):
        return f"Dropout(p={self.p:g}, activation={self.activation!r}, bits={self.bits})"
