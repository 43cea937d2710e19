"""Pilotlight: high-throughput inference with small models on GPUs that come and go."""

__version__ = "0.1.0"
