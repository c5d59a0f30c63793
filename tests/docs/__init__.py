"""What the documents promise: snippets, types, the demo, the built package."""
