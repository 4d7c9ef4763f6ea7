"""Gradient Centralization for Optax, over the right axes of any JAX model."""

from ._axes import axes_from_rank as axes_from_rank
from ._axes import summary as summary
from ._centralize import centralize as centralize

__version__ = "0.1.0"
