"""What each axis of a weight does: it is summed over, indexes outputs, or counts copies."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax

from .._axes import Axes, AxesTree, is_axes
from .report import as_axes
from .verdict import Verdict


class Roles(NamedTuple):
    """Axes trees, like the parameters, of the roles that the axes of weights have.

    Every axis longer than 1 of a weight is in one of them; all are ``()`` for what is no weight.

    Attributes:
      fan_in: axes that are contracted with the input.
      fan_out: axes that index the outputs that share this input.
      batch: axes that count copies with inputs of their own: layers of a scan, experts, members of
        an ensemble, and channels or groups of a depthwise or grouped convolution. An axis in which
        groups and their outputs are folded together is here, and not in ``fan_out``.
    """

    fan_in: AxesTree
    fan_out: AxesTree
    batch: AxesTree

    @property
    def matrix(self) -> AxesTree:
        """Fan-in and fan-out together: the axes of a single layer's or expert's matrix."""
        return jax.tree_util.tree_map(
            lambda fan_in, fan_out: tuple(sorted({*fan_in, *fan_out})),
            self.fan_in,
            self.fan_out,
            is_leaf=is_axes,
        )


def roles(tree: Callable[[Sequence[Axes]], AxesTree], found: Sequence[Verdict]) -> Roles:
    """The axes trees, as ``tree`` makes them, of what was found; ``()`` for what was refused."""
    weights = [v if v.axes and not v.refused else Verdict() for v in found]
    return Roles(
        *(
            tree([as_axes(getattr(v, part)) for v in weights])
            for part in ("axes", "outputs", "batch")
        )
    )
