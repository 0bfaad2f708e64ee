"""How what is left of the norms is run: by the compiler's own operators, or by a kernel."""
