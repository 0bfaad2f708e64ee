"""Before and after: what each stage does to a small network, as text to read and to compare."""
