"""What the public functions take and give, for type checkers.

An array comes back as its own type. Typing can't add the options that all variants share with `dropout` to a
function's own, as `gpudrop.variants.variant` does, so there is a protocol here for each set of options.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypedDict, TypeVar


class AnyArray(Protocol):
    """NumPy's, CuPy's and Numba's arrays, and what has DLPack or __cuda_array_interface__."""

    @property
    def shape(self) -> Any: ...
    @property
    def ndim(self) -> int: ...
    @property
    def dtype(self) -> Any: ...


Array = TypeVar("Array", bound=AnyArray)
MaskShape = Sequence[int | None]


class Backprop(Protocol):
    """Takes a gradient back: see `gpudrop.dropout_vjp`."""

    def __call__(self, dy: Array, *, out: Array | None = None) -> Array: ...


# The rest would make importing take longer.
if TYPE_CHECKING:
    from typing_extensions import Unpack

    from gpudrop.generator import RngLike
    from gpudrop.masks import Shard

    class BackpropOfTwo(Protocol):
        """The same for two arrays: see `gpudrop.zoneout`."""

        def __call__(self, dy: Array, *, out: Array | None = None) -> tuple[Array, Array]: ...

    class Common(TypedDict, total=False):
        """What every variant takes by name: see `gpudrop.dropout`."""

        activation: str | None
        training: bool
        rng: RngLike
        bits: int
        out: AnyArray | None
        backend: str | None
        shard: Shard | None

    class Own(TypedDict, total=False):
        """What variants take besides, each its own: all of it, for layers and modules, which check what they get."""

        mask_shape: MaskShape | None
        channels_last: bool
        time_axis: int
        samples: int | None
        block_size: int

    class LayerOptions(Own, total=False):
        """What layers take by name."""

        activation: str | None
        bits: int

    # Variants. A function's own options stand here as in its definition.

    class Prepares(Protocol):
        """What all variants have: see `gpudrop.variants.variant`."""

        __name__: str

        def prepare(self, *args: Any, **options: Any) -> Any: ...

    class Plain(Prepares, Protocol):
        def __call__(self, x: Array, p: float = ..., **common: Unpack[Common]) -> Array: ...
        def vjp(self, x: Array, p: float = ..., **common: Unpack[Common]) -> tuple[Array, Backprop]: ...

    class Channels(Prepares, Protocol):
        def __call__(
            self, x: Array, p: float = ..., *, channels_last: bool = ..., **common: Unpack[Common]
        ) -> Array: ...
        def vjp(
            self, x: Array, p: float = ..., *, channels_last: bool = ..., **common: Unpack[Common]
        ) -> tuple[Array, Backprop]: ...

    class Times(Prepares, Protocol):
        def __call__(self, x: Array, p: float = ..., *, time_axis: int = ..., **common: Unpack[Common]) -> Array: ...
        def vjp(
            self, x: Array, p: float = ..., *, time_axis: int = ..., **common: Unpack[Common]
        ) -> tuple[Array, Backprop]: ...

    class Weights(Prepares, Protocol):
        def __call__(
            self, x: Array, p: float = ..., *, samples: int | None = ..., **common: Unpack[Common]
        ) -> Array: ...
        def vjp(
            self, x: Array, p: float = ..., *, samples: int | None = ..., **common: Unpack[Common]
        ) -> tuple[Array, Backprop]: ...

    class Maps(Prepares, Protocol):
        def __call__(self, x: Array, p: float = ..., *, block_size: int = ..., **common: Unpack[Common]) -> Array: ...
        def vjp(
            self, x: Array, p: float = ..., *, block_size: int = ..., **common: Unpack[Common]
        ) -> tuple[Array, Backprop]: ...

    class Deviates(Prepares, Protocol):
        def __call__(self, x: Array, std: float = ..., **common: Unpack[Common]) -> Array: ...
        def vjp(self, x: Array, std: float = ..., **common: Unpack[Common]) -> tuple[Array, Backprop]: ...

    class OfTwo(Prepares, Protocol):
        def __call__(self, x: Array, previous: Array, p: float = ..., **common: Unpack[Common]) -> Array: ...
        def vjp(
            self, x: Array, previous: Array, p: float = ..., **common: Unpack[Common]
        ) -> tuple[Array, BackpropOfTwo]: ...
