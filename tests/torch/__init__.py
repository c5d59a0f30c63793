"""The PyTorch face."""
