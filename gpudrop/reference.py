"""The old name of `gpudrop.testing.reference`."""

from gpudrop.testing.reference import *  # noqa: F403
