"""Turning models into pre-dispatch ATen graphs."""
