"""The signatures of the public functions, for type checkers.

An array is returned as its own type. `gpudrop.variants.variant` adds the options of `dropout` to the options of each
variant. Typing cannot express this, so each set of options has a protocol here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypedDict, TypeVar


class AnyArray(Protocol):
    """An array of NumPy, CuPy or Numba, or an array with DLPack or __cuda_array_interface__."""

    @property
    def shape(self) -> Any: ...
    @property
    def ndim(self) -> int: ...
    @property
    def dtype(self) -> Any: ...


Array = TypeVar("Array", bound=AnyArray)
MaskShape = Sequence[int | None]
Save = Literal["auto", "output", "bits"]


class Backprop(Protocol):
    """The function that computes the gradient: see `gpudrop.dropout_vjp`."""

    def __call__(self, dy: Array, *, out: Array | None = None) -> Array: ...


# At run time, the rest would only make the import slower.
if TYPE_CHECKING:
    from typing import Generic

    from typing_extensions import NamedTuple, Unpack

    from gpudrop.generator import RngLike
    from gpudrop.masks import Shard

    class PreviousGradients(NamedTuple, Generic[Array]):
        """The gradients of `gpudrop.zoneout`."""

        dx: Array
        dprevious: Array

    class BiasGradients(NamedTuple, Generic[Array]):
        """The gradients of `gpudrop.dropout` with a bias."""

        dx: Array
        dbias: Array

    class ResidualGradients(NamedTuple, Generic[Array]):
        """The gradients of `gpudrop.dropout_add`. Those of absent arguments are None."""

        dx: Array
        dresidual: Array
        dbias: Any
        dgain: Any

    class GateGradients(NamedTuple, Generic[Array]):
        """The gradients of `gpudrop.dropout_glu`. The last one is None without value."""

        dgate: Array
        dvalue: Any

    class BackpropOfTwo(Protocol):
        """The function that computes the gradients of `gpudrop.zoneout`."""

        def __call__(
            self, dy: Array, *, out: Array | tuple[Array | None, ...] | None = None
        ) -> PreviousGradients[Array]: ...

    class BackpropOfResidual(Protocol):
        """The function that computes the gradients of `gpudrop.dropout_add`."""

        def __call__(self, dy: Array, *, out: Array | None = None) -> ResidualGradients[Array]: ...

    class BackpropOfBias(Protocol):
        """The function that computes the gradients of `gpudrop.dropout` with a bias."""

        def __call__(self, dy: Array, *, out: Array | None = None) -> BiasGradients[Array]: ...

    class BackpropOfGate(Protocol):
        """The function that computes the gradients of `gpudrop.dropout_glu`."""

        def __call__(
            self, dy: Array, *, out: Array | tuple[Array | None, ...] | None = None
        ) -> GateGradients[Array]: ...

    class Common(TypedDict, total=False):
        """The keyword arguments of every variant: see `gpudrop.dropout`."""

        activation: str | None
        training: bool
        rng: RngLike
        bits: int
        out: AnyArray | None
        backend: str | None
        shard: Shard | None

    class OfVjp(Common, total=False):
        """The keyword arguments of every variant's vjp: see `gpudrop.dropout_vjp`."""

        save: Save

    class Own(TypedDict, total=False):
        """All other keyword arguments of variants. Layers and modules check which ones their variant has."""

        mask_shape: MaskShape | None
        channels_last: bool
        time_axis: int
        samples: int | None
        block_size: int
        gate_first: bool

    class LayerOptions(Own, total=False):
        """The keyword arguments of layers."""

        activation: str | None
        bits: int

    # Variants. A function's own options are the same as in its definition.

    class Prepares(Protocol):
        """The attributes of all variants: see `gpudrop.variants.variant`."""

        __name__: str

        def prepare(self, *args: Any, **options: Any) -> Any: ...

    class Plain(Prepares, Protocol):
        def __call__(self, x: Array, p: float = ..., **common: Unpack[Common]) -> Array: ...
        def vjp(self, x: Array, p: float = ..., **common: Unpack[OfVjp]) -> tuple[Array, Backprop]: ...

    class Channels(Prepares, Protocol):
        def __call__(
            self, x: Array, p: float = ..., *, channels_last: bool = ..., **common: Unpack[Common]
        ) -> Array: ...
        def vjp(
            self, x: Array, p: float = ..., *, channels_last: bool = ..., **common: Unpack[OfVjp]
        ) -> tuple[Array, Backprop]: ...

    class Times(Prepares, Protocol):
        def __call__(self, x: Array, p: float = ..., *, time_axis: int = ..., **common: Unpack[Common]) -> Array: ...
        def vjp(
            self, x: Array, p: float = ..., *, time_axis: int = ..., **common: Unpack[OfVjp]
        ) -> tuple[Array, Backprop]: ...

    class Weights(Prepares, Protocol):
        def __call__(
            self, x: Array, p: float = ..., *, samples: int | None = ..., **common: Unpack[Common]
        ) -> Array: ...
        def vjp(
            self, x: Array, p: float = ..., *, samples: int | None = ..., **common: Unpack[OfVjp]
        ) -> tuple[Array, Backprop]: ...

    class Maps(Prepares, Protocol):
        def __call__(self, x: Array, p: float = ..., *, block_size: int = ..., **common: Unpack[Common]) -> Array: ...
        def vjp(
            self, x: Array, p: float = ..., *, block_size: int = ..., **common: Unpack[OfVjp]
        ) -> tuple[Array, Backprop]: ...

    class Deviates(Prepares, Protocol):
        def __call__(self, x: Array, std: float = ..., **common: Unpack[Common]) -> Array: ...
        def vjp(self, x: Array, std: float = ..., **common: Unpack[OfVjp]) -> tuple[Array, Backprop]: ...

    class OfTwo(Prepares, Protocol):
        def __call__(self, x: Array, previous: Array, p: float = ..., **common: Unpack[Common]) -> Array: ...
        def vjp(
            self, x: Array, previous: Array, p: float = ..., **common: Unpack[OfVjp]
        ) -> tuple[Array, BackpropOfTwo]: ...

    class OfResidual(Prepares, Protocol):
        def __call__(
            self,
            x: AnyArray,
            residual: Array,
            p: float = ...,
            *,
            bias: AnyArray | None = ...,
            gain: AnyArray | None = ...,
            mask_shape: MaskShape | None = ...,
            **common: Unpack[Common],
        ) -> Array: ...
        def vjp(
            self,
            x: AnyArray,
            residual: Array,
            p: float = ...,
            *,
            bias: AnyArray | None = ...,
            gain: AnyArray | None = ...,
            mask_shape: MaskShape | None = ...,
            **common: Unpack[OfVjp],
        ) -> tuple[Array, BackpropOfResidual]: ...

    class OfGate(Prepares, Protocol):
        def __call__(
            self,
            gate: Array,
            value: Array | None = ...,
            p: float = ...,
            *,
            gate_first: bool = ...,
            **common: Unpack[Common],
        ) -> Array: ...
        def vjp(
            self,
            gate: Array,
            value: Array | None = ...,
            p: float = ...,
            *,
            gate_first: bool = ...,
            **common: Unpack[OfVjp],
        ) -> tuple[Array, BackpropOfGate]: ...
