"""Measurements of normfuse beside Inductor."""
