"""The trainable layers."""
