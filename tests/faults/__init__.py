"""What goes wrong around a call is reported, nothing hangs, and generators and arrays stay as they were."""
