"""Errors outside a call are reported, nothing hangs, and generators and arrays stay unchanged."""
