"""The shape of a small array for each variant."""

from gpudrop.variants import FAMILY

OTHERS = {
    "drop_path": (9, 3),
    "locked_dropout": (4, 3, 5),
    "embedding_dropout": (9, 4),
    "token_dropout": (3, 5, 4),
    "consistent_dropout": (3, 9),
    "dropblock1d": (2, 3, 15),
    "dropblock2d": (2, 3, 9, 9),
    "feature_alpha_dropout": (3, 4, 5),
}
OTHERS |= dict.fromkeys(("dropout", "drop_connect", "alpha_dropout", "gaussian_dropout"), (5, 7))
OTHERS |= dict.fromkeys(("uniform_dropout", "gaussian_noise", "zoneout", "dropout_add", "dropout_glu"), (5, 7))

SHAPES = {name: OTHERS.get(name, (3, 4, 5, 2, 2)[: row.ndim]) for name, row in FAMILY.items()}

ALONE = [name for name, row in FAMILY.items() if row.inputs == ("x",) and name != "dropout"]
"""The variants of one array, which take the same arguments as their references in `gpudrop.testing.reference.FAMILY`.
"""
