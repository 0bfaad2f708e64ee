"""Weights as constants of a compiled graph, which is right as long as they do not change."""
