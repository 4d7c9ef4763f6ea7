"""What GC removes, where the weights go, and how sharp the loss is: plain functions of trees.

Each answers a small tree of arrays, works under `jax.jit` and can be watched from inside an
optimizer: `optax.snapshot` takes a function of the updates at its place in a chain, and
`optax.monitor` also takes ``optax.stateless(function of updates and params)``. `optax.tree.get`
reads the latest value from the optimizer's state. That of a snapshot can be carried through
`jax.lax.scan`; that of a monitor, whose measurements are empty before the first step, cannot.
Parameters go by their paths, as in `summary`.
"""

from ._sharpness import Sharpness as Sharpness
from ._sharpness import sharpness as sharpness
from ._span import span_residual as span_residual
from ._trees import Norms as Norms
from ._trees import Removed as Removed
from ._trees import norms as norms
from ._trees import radial_component as radial_component
from ._trees import removed_fraction as removed_fraction
from ._trees import unit_sums as unit_sums
