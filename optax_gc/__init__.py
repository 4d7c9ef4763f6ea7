"""Gradient Centralization for Optax, over the right axes of any JAX model."""

from . import diagnostics as diagnostics
from ._axes import axes_from_rank as axes_from_rank
from ._axes import summary as summary
from ._centralize import centralize as centralize
from ._muon import muon_dimension_numbers as muon_dimension_numbers
from ._scale_invariant import scale_invariant as scale_invariant
from ._trace import Roles as Roles
from ._trace import axes_from_trace as axes_from_trace
from ._trace import explain as explain
from ._trace import roles_from_trace as roles_from_trace
from ._trust_ratio import scale_by_trust_ratio as scale_by_trust_ratio
from ._weights import center_weights as center_weights
from ._weights import rescale_weights as rescale_weights

__version__ = "0.1.0"
