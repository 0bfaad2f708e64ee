"""Where rewritten graphs go: the only package that touches Dynamo and Inductor."""
