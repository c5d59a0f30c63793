"""`gpudrop.testing.reference`, under its first name."""

from gpudrop.testing.reference import *  # noqa: F403
