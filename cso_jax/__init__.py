"""Cascaded Skills Optimization in JAX: QueST base policy, R-SFT, SPO."""

__version__ = "0.1.0"
