"""Rules for the operations that contract: dot_general, ragged_dot and convolution.

Each says which dimensions of its operands go where in their product, and which of that are summed.
"""

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..digits import Dims, Shape, axes_of, has_axes, repeats, reshape
from ..jaxprs import shape_of
from ..reasons import Why
from ..sums import contract, contract_all
from ..uses import is_scaled
from ..values import Kind, Node, Part, Rest, Value

if TYPE_CHECKING:
    from ..walk import Walk


def dot_general(trace: "Walk", eqn: Any, a: Value, b: Value) -> Value:
    """A product of matrices or tensors: every einsum, attention, dense layer."""
    return _dot(trace, a, b, eqn.params["dimension_numbers"], (), shape_of(eqn.outvars[0]))


def einsum(trace: "Walk", eqn: Any, *values: Value) -> Value:
    """A product of three or more, whatever the order in which JAX multiplies them.

    First one-hots choose rows. Then weights are multiplied, and summed over what nothing else has:
    they are one weight. Then all, inputs first.
    """
    if any(v.kind == Kind.PARAMETER and v.unknown for v in values):  # which may be weights too
        values = tuple([v.in_doubt(Why.EITHER) for v in values])
    operands = [*zip(values, eqn.params["operands"], strict=True)]
    weights = [
        (v, x) for v, x in operands if (v.terms and v.kind == Kind.PARAMETER) or is_scaled(v)
    ]
    weights.sort(key=lambda o: o[0].terms[0].params)
    others = [o for o in operands if o not in weights]
    kept = eqn.params["result"]
    for hot, labels in [*others]:
        for x, dim in zip(labels, hot.one_hot or (), strict=False):
            having = [o for o in operands if o[0] is not hot and x in o[1]]
            if has_axes(dim) and len(having) == 1 and having[0] in weights and x not in kept:
                rows = [y for y in dict.fromkeys((*labels, *having[0][1])) if y != x]
                weights.remove(having[0])
                others = [o for o in others if o[0] is not hot]
                others.append((_product(trace, [(hot, labels), *having], rows), rows))
                break
    # A constant that meets no inputs is a part of the weight that it meets.
    inputs = {x for v, labels in others for x in labels if v.kind == Kind.DATA}
    frozen = [o for o in others if o[0].kind == Kind.CONSTANT and not inputs & {*o[1]}]
    others = [o for o in others if o not in frozen]
    if weights and len(weights) + len(frozen) > 1 and others:
        weights += frozen
        needed = {label for _, labels in others for label in labels} | {*kept}
        inner = [*dict.fromkeys(x for _, labels in weights for x in labels if x in needed)]
        weights = [(_product(trace, weights, inner), inner)]
    else:
        others += frozen
    for a, b in itertools.permutations([o for o in others if o[0].kind == Kind.DATA], 2):
        # Of inputs that have rows of their own, one is scaled by what is summed with both, as
        # queries are before they meet keys.
        scale = {*weights[0][1]} if len(weights) == 1 else None
        rows = {*a[1]} & {*kept} - {*b[1]}
        if scale and rows and scale - {*kept} <= {*a[1]} & {*b[1]}:
            others = [a, weights.pop(), *(o for o in others if o is not a)]
    return _product(trace, [*others, *weights], kept)


def einsum_part(trace: "Walk", eqn: Any, a: Value, b: Value) -> Value:
    """What is left of an einsum that was taken apart: its order tells nothing of its weights."""
    for value in (a, b):
        trace.refuse_all(value, Why.APART)
    result = dot_general(trace, eqn.params["equation"], a, b)
    return result.in_doubt(Why.APART)


def _product(
    trace: "Walk", operands: Sequence[tuple[Value, Sequence[int]]], kept: Sequence[int]
) -> Value:
    """The product of values whose dimensions have labels, summed over those that are not kept."""
    sizes = {x: n for v, labels in operands for x, n in zip(labels, v.shape, strict=True)}
    every = [*kept, *(label for label in sizes if label not in kept)]
    onto = [[of.index(x) if x in of else None for x in every] for _, of in operands]
    factors = [*zip([v for v, _ in operands], onto, strict=True)]
    return contract_all(trace, factors, tuple(sizes[x] for x in every), len(kept))


def ragged_dot(trace: "Walk", eqn: Any, a: Value, b: Value, sizes: Value) -> Value:
    """A product whose rows choose their matrix: experts. The groups are a batch of matrices."""
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    (a_contracted, _), _ = numbers.dot_dimension_numbers
    if set(numbers.lhs_ragged_dimensions) & set(a_contracted):
        return trace.opaque(eqn, (a, b, sizes))[0]  # contracts group by group
    groups = tuple(numbers.rhs_group_dimensions)
    return _dot(trace, a, b, numbers.dot_dimension_numbers, groups, shape_of(eqn.outvars[0]))


def _dot(
    trace: "Walk", a: Value, b: Value, numbers: Any, groups: tuple[int, ...], shape: Shape
) -> Value:
    (a_sum, b_sum), (a_batch, b_batch) = ((tuple(x), tuple(y)) for x, y in numbers)
    a_free = [d for d in range(len(a.shape)) if d not in (*a_sum, *a_batch)]
    b_free = [d for d in range(len(b.shape)) if d not in (*b_sum, *b_batch, *groups)]
    a_onto = (*a_batch, *a_free, *[None] * len(b_free), *a_sum)
    b_onto = (*b_batch, *[None] * len(a_free), *b_free, *b_sum)
    full = (*shape, *(a.shape[d] for d in a_sum))
    if groups:  # which of them a row belongs to is chosen by data
        b = _one_of(b, groups, ("group", trace.path))
    return contract(trace, a, b, a_onto, b_onto, full, len(shape))


def _one_of(value: Value, groups: tuple[int, ...], key: Any) -> Value:
    """The value, of which each row sees one slice along some dimensions."""

    def seen(dims: Dims) -> Dims:
        return tuple(() if d in groups else dim for d, dim in enumerate(dims))

    def node(n: Node) -> Node:
        parts = [Part(key, axes_of((n.dims[d],)), n.dims[d]) for d in groups]
        return n._replace(dims=seen(n.dims), parts=n.parts | {p for p in parts if p.axes})

    return value.moved(seen, value.shape, lambda t: t._replace(nodes=tuple(map(node, t.nodes))))


def conv_general_dilated(trace: "Walk", eqn: Any, image: Value, kernel: Value) -> Value:
    """A convolution: the kernel's window and input features are contracted.

    Groups are a batch: the output features (and of the two operands' others, the input features or
    the batch) are split into groups by features. Of the image nothing is known along the window,
    but that it varies there if it does along the dimension that the window slides along.
    """
    numbers, shape = eqn.params["dimension_numbers"], shape_of(eqn.outvars[0])
    by_feature, by_batch = eqn.params["feature_group_count"], eqn.params["batch_group_count"]
    groups = by_feature * by_batch
    i_batch, i_feature, *i_window = numbers.lhs_spec
    k_out, k_in, *k_window = numbers.rhs_spec
    o_batch, o_feature, *o_window = numbers.out_spec
    # Put the groups in a dimension of their own, before the one they are part of.
    i_split = i_feature if by_feature > 1 else i_batch
    image = _split(image, i_split, groups)
    kernel = _split(kernel, k_out, groups)
    grouped = (*shape[:o_feature], groups, shape[o_feature] // groups, *shape[o_feature + 1 :])

    def after(d: int, at: int) -> int:
        return d + (d >= at)

    k_sum = [after(k, k_out) for k in (k_in, *k_window)]
    i_onto: list[int | None] = [None] * (len(grouped) + len(k_sum))
    k_onto: list[int | None] = [*[None] * len(grouped), *k_sum]
    i_onto[after(o_batch, o_feature)] = after(i_batch, i_split)
    i_onto[o_feature], k_onto[o_feature] = i_split, k_out
    k_onto[o_feature + 1] = k_out + 1
    i_onto[len(grouped)] = after(i_feature, i_split)
    for j, (i, o) in enumerate(zip(i_window, o_window, strict=True)):
        i_onto[after(o, o_feature)] = after(i, i_split)
        i_onto[len(grouped) + 1 + j] = after(i, i_split)
    if kernel.kind == Kind.DATA and (pure := [t for t in image.terms if t.data is None]):
        # The right operand is the kernel, but for jnp.convolve, which puts the longer one left.
        if not any(repeats(n.dims) for t in pure for n in t.nodes):
            return trace.opaque(eqn, (image, kernel))[0]
        for t in pure:
            trace.use(t.params, "elementwise")
        terms = tuple(t for t in image.terms if t.data is not None)
        left = {"terms": terms, "kind": Kind.DATA, "varies": image.support, "rest": Rest.DATA}
        image = image._replace(**left)
    full = (*grouped, *(kernel.shape[d] for d in k_sum))
    result = contract(trace, image, kernel, i_onto, k_onto, full, len(grouped))
    return result.moved(lambda dims: reshape(dims, shape), shape)


def _split(value: Value, d: int, groups: int) -> Value:
    shape = (*value.shape[:d], groups, value.shape[d] // groups, *value.shape[d + 1 :])
    return value.moved(lambda dims: reshape(dims, shape), shape)


RULES = {
    "dot_general": dot_general,
    "einsum": einsum,
    "einsum_part": einsum_part,
    "ragged_dot_general": ragged_dot,
    "ragged_dot": ragged_dot,
    "conv_general_dilated": conv_general_dilated,
}
