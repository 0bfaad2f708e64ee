"""Rewritten programs for other runtimes."""
