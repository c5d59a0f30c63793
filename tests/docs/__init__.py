"""Tests of the documentation: snippets, types, examples, the demo, the site and the built package."""
