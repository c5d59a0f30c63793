"""Tests of the benchmarks: they time only correct contenders, and write their results."""
