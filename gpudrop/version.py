"""The version, also of the distribution: setuptools reads it here."""

VERSION = "0.1.0"
