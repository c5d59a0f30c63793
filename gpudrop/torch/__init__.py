"""gpudrop for PyTorch: operators, functions and modules whose masks depend on torch's own random seed."""

try:
    import torch  # noqa: F401
except ImportError as error:
    raise ImportError("gpudrop.torch needs PyTorch: install the package torch") from error

from gpudrop.torch import checkpoints, functional, threads
from gpudrop.torch.adoption import accelerate, convert, revert
from gpudrop.torch.attention import MultiheadAttention, scaled_dot_product_attention
from gpudrop.torch.modules import (
    AlphaDropout,
    ConsistentDropout,
    DropBlock1d,
    DropBlock2d,
    DropConnect,
    Dropout,
    Dropout1d,
    Dropout2d,
    Dropout3d,
    DropoutAdd,
    DropoutGLU,
    DropPath,
    EmbeddingDropout,
    FeatureAlphaDropout,
    GaussianDropout,
    GaussianNoise,
    LockedDropout,
    TokenDropout,
    UniformDropout,
    WeightDrop,
    Zoneout,
)

threads.join()
checkpoints.join()

__all__ = [
    "AlphaDropout",
    "ConsistentDropout",
    "DropBlock1d",
    "DropBlock2d",
    "DropConnect",
    "DropPath",
    "Dropout",
    "Dropout1d",
    "Dropout2d",
    "Dropout3d",
    "DropoutAdd",
    "DropoutGLU",
    "EmbeddingDropout",
    "FeatureAlphaDropout",
    "GaussianDropout",
    "GaussianNoise",
    "LockedDropout",
    "MultiheadAttention",
    "TokenDropout",
    "UniformDropout",
    "WeightDrop",
    "Zoneout",
    "accelerate",
    "convert",
    "functional",
    "revert",
    "scaled_dot_product_attention",
]
