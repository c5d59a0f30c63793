"""The benchmarks time only what is right, and write what they found."""
