"""Tests of gpudrop.torch."""
