"""Rules for operations on one value that sum, reduce or shuffle some of its dimensions."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from ..digits import Dims, Shape, axes_of, has_axes, lost
from ..jaxprs import shape_of
from ..products import bent
from ..reasons import Why
from ..sums import summed
from ..values import Echo, Term, Value

if TYPE_CHECKING:
    from ..walk import Walk


def reduce_(trace: "Walk", eqn: Any, value: Value) -> Value:
    """A reduction that drops dimensions."""
    value = value if eqn.primitive.name == "reduce_sum" else bent(trace, value)
    return summed(trace, value, eqn.params["axes"])


def shuffled(trace: "Walk", value: Value, over: Iterable[int], shape: Shape) -> Value:
    """What every element along the dimensions `over` may have come from any other."""
    over = tuple(over)

    def shuffle(dims: Dims) -> Dims:
        return tuple(
            lost(shape[i], axes_of((dim,))) if i in over else dim for i, dim in enumerate(dims)
        )

    # A sum of parameters over their own axes is a statistic of them; of activations, a sum of those
    # elements, which are still there. Both hold here.
    sums = summed(trace, value, over)
    later = {e.params: e for e in sums.echoes if e.pending == Why.LATER}

    def echo(e: Echo) -> Echo:
        moved = e.moved(shuffle)
        late = later.get(e.params) if e.whole is not None else None
        return moved._replace(pending=late.pending, fan_in=late.fan_in) if late else moved

    return value.plain().moved(shuffle, shape, echo=echo)


def along_axis(trace: "Walk", eqn: Any, value: Value) -> Value:
    """A cumulative reduction along one axis."""
    return shuffled(trace, value, (eqn.params["axis"],), shape_of(eqn.outvars[0]))


def sort(trace: "Walk", eqn: Any, *values: Value) -> list[Value]:
    """Sorts along one dimension."""
    over = (eqn.params["dimension"],)
    return [shuffled(trace, v, over, v.shape) for v in values]


def top_k(trace: "Walk", eqn: Any, value: Value) -> list[Value]:
    """The largest elements along the last dimension (or `axis`), and their indices."""
    over = (eqn.params.get("axis", -1) % len(value.shape),)
    result = shuffled(trace, value, over, shape_of(eqn.outvars[0]))
    return [result, result.without_gradient()]


def window(trace: "Walk", eqn: Any, value: Value, *init: Value) -> Value:
    """A pooling window: shuffles the dimensions it is longer than 1 along."""
    shape, sizes = shape_of(eqn.outvars[0]), eqn.params["window_dimensions"]
    over = [i for i, n in enumerate(sizes) if n > 1 or shape[i] != value.shape[i]]
    return shuffled(trace, value, over, shape)


def fft(trace: "Walk", eqn: Any, value: Value) -> Value:
    """A Fourier transform of the last dimensions."""
    rank = len(value.shape)
    over = range(rank - len(eqn.params["fft_lengths"]), rank)
    result = shuffled(trace, value, over, shape_of(eqn.outvars[0]))

    def term(t: Term) -> Term:  # of a kernel's spectrum a product with data is a convolution
        mixed = any(has_axes(n.dims[d]) for n in t.nodes for d in over)
        return t._replace(unsure=t.unsure or Why.PARTLY) if mixed else t

    return result._replace(terms=tuple(map(term, result.terms)))


_REDUCTIONS = """
    reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor argmax argmin
"""

RULES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(_REDUCTIONS.split(), reduce_),
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"), along_axis),
    **dict.fromkeys(("reduce_window_sum", "reduce_window_max", "reduce_window_min"), window),
    "sort": sort,
    "top_k": top_k,
    "fft": fft,
}
