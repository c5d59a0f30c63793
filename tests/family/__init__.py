"""The variants of dropout, their layers, and Monte-Carlo sampling."""
