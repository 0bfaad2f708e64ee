"""The kernels themselves, in Triton's language. Capitals are known when a kernel is compiled."""
