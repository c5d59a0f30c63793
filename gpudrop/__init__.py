"""gpudrop: dropout with one mask everywhere, drawn by Philox inside fused kernels."""

from gpudrop import layers, schedules
from gpudrop.context import no_dropout
from gpudrop.dropout import dropout, dropout_vjp, keep_mask
from gpudrop.formulas.activations import register_activation, unregister_activation
from gpudrop.formulas.noises import Quantized, quantize
from gpudrop.generator import Generator, Stream, manual_seed
from gpudrop.layers import Dropout
from gpudrop.masks import Shard
from gpudrop.monte_carlo import MonteCarlo, mc_samples
from gpudrop.variants import (
    alpha_dropout,
    consistent_dropout,
    drop_connect,
    drop_path,
    drop_path_rates,
    dropblock1d,
    dropblock2d,
    dropout1d,
    dropout2d,
    dropout3d,
    dropout_add,
    dropout_glu,
    embedding_dropout,
    feature_alpha_dropout,
    gaussian_dropout,
    gaussian_noise,
    locked_dropout,
    token_dropout,
    uniform_dropout,
    zoneout,
)
from gpudrop.version import VERSION
from gpudrop.warming import warmup

__version__ = VERSION

__all__ = [
    "Dropout",
    "Generator",
    "MonteCarlo",
    "Quantized",
    "Shard",
    "Stream",
    "alpha_dropout",
    "consistent_dropout",
    "drop_connect",
    "drop_path",
    "drop_path_rates",
    "dropblock1d",
    "dropblock2d",
    "dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "dropout_add",
    "dropout_glu",
    "dropout_vjp",
    "embedding_dropout",
    "feature_alpha_dropout",
    "gaussian_dropout",
    "gaussian_noise",
    "keep_mask",
    "layers",
    "locked_dropout",
    "manual_seed",
    "mc_samples",
    "no_dropout",
    "quantize",
    "register_activation",
    "schedules",
    "token_dropout",
    "uniform_dropout",
    "unregister_activation",
    "warmup",
    "zoneout",
]
