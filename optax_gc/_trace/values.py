"""What is known of a value: a sum of products of parameters, and what is left of used ones.

A value is a polynomial in the parameters. Each `Term` is a product of parameters' images, perhaps
with digits summed away between them (`edges`), perhaps multiplied by inputs (`data`). A parameter
stays in a term until its use is known: it is contracted with inputs, or added to them. From then on
the value is an activation, and an `Echo` remembers the parameter's digits in it, so that a second
contraction over them can be refused.
"""

import functools
from collections.abc import Callable, Hashable, Iterable
from enum import IntEnum
from typing import Any, NamedTuple

from .digits import NONE, AxisSet, Dim, Dims, Shape, axes_of, foreign, has_axes, vary, varying
from .jaxprs import Derivative


class Kind(IntEnum):
    """What a value depends on, as far as gradients and inputs are concerned."""

    CONSTANT = 0
    PARAMETER = 1  # parameters and constants only
    DATA = 2


class Rest(IntEnum):
    """What the summands of a value are that have no parameters in them."""

    NONE = 0  # there are none, but for numbers that are the same in all elements
    CONSTANT = 1  # constants, perhaps times numbers that are inputs
    DATA = 2


class Part(NamedTuple):
    """A slice of a parameter's axes that an image shows."""

    # Equal for equal slices; ("loop", loop) is the one that a loop is at, ("mesh", axes) a shard.
    key: Any
    axes: AxisSet
    dim: Dim = ()  # the digits that a loop has cut away
    place: int | None = None  # the position, where that is known

    @property
    def window(self) -> tuple[int, int, int] | None:
        """Of what is cut from a whole axis at a known index: that, its end, and the axis's."""
        start = self.key[0]
        if not isinstance(start, int):
            return None
        _, size, dim = self.key
        whole = dim[0].size
        if len(dim) == 1 and dim[0].stride == -1:
            start = whole - start - size
        elif len(dim) != 1 or dim[0].stride != 1:
            return None
        return start, start + size, whole

    @property
    def is_shard(self) -> bool:
        """Whether it is what one device of a mesh has."""
        return self.key[0] == "mesh"

    @property
    def path(self) -> tuple[int, ...] | None:
        """Of a slice at an unknown place, the equation that took it."""
        start = self.key[0]
        return start[1] if isinstance(start, tuple) and start[0] == "slice" else None


class Node(NamedTuple):
    """One occurrence of a parameter in a term."""

    param: int
    dims: Dims
    parts: frozenset[Part] = frozenset()
    bent: bool = False  # something nonlinear was done to its product with data
    chosen: AxisSet = NONE  # axes of which data chose indices


Move = Callable[[Dims], Dims]


def _moved(dims: Dims | None, f: Move) -> Dims | None:
    return None if dims is None else f(dims)


CONSTANT = -1  # stands for a constant in an edge
Edge = frozenset[tuple[int, AxisSet]]  # summed together: places of nodes in the term, and axes


class Term(NamedTuple):
    """A product of parameters, constants and data."""

    nodes: tuple[Node, ...]
    edges: frozenset[Edge] = frozenset()
    constants: Dims | None = None  # along which constants vary that it is multiplied by
    data: Dims | None = None  # along which inputs vary that it is multiplied by
    rows: Dims | None = None  # the same, before the last multiplication
    # Along which the last of them varied, and of something nonlinear all since; None if it only
    # chose rows.
    last: Dims | None = None
    bent: bool = False  # something nonlinear was done to a product
    curved: bool = False  # or to a parameter, such as a norm
    picked: Dims | None = None  # along which the indices vary that data chose rows by
    paired: bool = False  # such rows, multiplied by rows that data chose of another parameter
    hot: Dims | None = None  # along which the data is one-hot, or was when it chose rows
    merged: bool = False  # added to a parameter of the same shape: an update of it
    unsure: str = ""  # why it would have to be refused as a weight
    blurred: str = ""  # the data is made from inputs alone by an operation that is not known
    learned: frozenset[int] = frozenset()  # the parameters that the data is, by evidence of its own
    unrolled: bool = False  # added to a product of another slice of it with data
    put: bool = False  # written beside others, in a place that data does not vary along
    residual: bool = False  # added to other data
    loops: frozenset[Hashable] = frozenset()  # that the data is carried by
    seen: int = 0  # the parameters that the data was computed from, a bit each

    def moved(
        self, f: Move, data: Move | None = None, node: Callable[[Node], Node] | None = None
    ) -> "Term":
        """The term after an operation that moves elements as `f` moves dimensions.

        Args:
          f: moves dimensions.
          data: moves those that data varies along, where they move otherwise.
          node: moves an image, where more becomes of it.
        """
        node = node or (lambda n: n._replace(dims=f(n.dims)))
        nodes = tuple([node(n) for n in self.nodes])
        if self.is_image and self.constants is None:
            return self._replace(nodes=nodes)
        g = data or f
        return self._replace(
            nodes=nodes,
            constants=_moved(self.constants, g),
            data=_moved(self.data, g),
            rows=_moved(self.rows, g),
            last=_moved(self.last, g),
            picked=_moved(self.picked, f),
            hot=_moved(self.hot, f),
        )

    def with_constants(self, varies: Dims) -> "Term":
        """The term times constants that vary along some dimensions."""
        return self._replace(
            constants=varies if self.constants is None else vary(self.constants, varies)
        )

    @property
    def params(self) -> list[int]:
        """The parameters in it."""
        return [n.param for n in self.nodes]

    @property
    def is_image(self) -> bool:
        """Whether it is one parameter, element by element, that nothing has met."""
        return len(self.nodes) == 1 and not self.edges and self.data is None

    @property
    def is_rows(self) -> bool:
        """Whether it is rows that data chose, and that nothing has met since."""
        return self.picked is not None and self.last is None

    @property
    def support(self) -> Dims:
        """Along which dimensions it varies."""
        dims = self.nodes[0].dims
        for other in (*(n.dims for n in self.nodes[1:]), self.constants, self.data, self.picked):
            dims = dims if other is None else vary(dims, other)
        return dims


class Echo(NamedTuple):
    """What is left of parameters in a value after their use is known: digits of their own axes."""

    params: frozenset[int]
    how: str  # "used": contracted with data; "added" to data; "statistic": summed by itself
    dims: Dims
    rows: Dims  # along which the data varied that it met
    data: Dims | None = None  # along which data varies that it was multiplied by since
    others: Dims | None = None  # the same, without data computed from the parameter itself
    raw: bool = False  # that data is of constants alone
    bent: bool = False
    repeated: bool = True  # when it met that data, along some digit of that
    hidden: bool = False  # it may have outputs that no digits show: of length 1, or beyond an edge
    learned: frozenset[int] = frozenset()  # the parameters that this data is
    network: bool = False  # used in a product with other parameters
    oriented: frozenset[int] = frozenset()  # the network that it told, as a vector, the rows of
    cut: AxisSet = NONE  # axes of which a slice or a step of a loop shows one position
    twice: bool = False  # contracted with data again
    parts: frozenset[Part] = frozenset()  # slices of it that were used
    sliced: frozenset[Part] = frozenset()  # slices of what is left of it
    unknown: str = ""  # why it may be anywhere: an operation that is not known was done to it
    pending: str = ""  # why it has to be refused, unless it turns out to scale its own parameter
    fan_in: AxisSet = NONE
    whole: Dims | None = None  # its digits with those that the data shared, until it is settled
    seen: int = 0  # if it was used, what the data was computed from
    loops: frozenset[Hashable] = frozenset()  # that carry this data, or the sum it was added in

    def moved(self, f: Move, data: Move | None = None) -> "Echo":
        """The echo after an operation that moves elements, those of data by `data` if given."""
        g = data or f
        return self._replace(
            dims=f(self.dims),
            rows=g(self.rows),
            data=_moved(self.data, g),
            others=_moved(self.others, g),
            whole=_moved(self.whole, f),
        )


class Value(NamedTuple):
    """What is known about one variable of the jaxpr."""

    shape: Shape
    kind: Kind = Kind.CONSTANT
    varies: Dims = ()  # along which constants and inputs vary
    terms: tuple[Term, ...] = ()
    echoes: tuple[Echo, ...] = ()
    seen: int = 0  # the parameters that went into it, a bit each
    loops: frozenset[Hashable] = frozenset()  # that it is carried by, or computed from what is
    blurred: str = ""  # made from inputs alone by an operation that is not known, and which
    # The parameters of an activation made of them alone, told by a norm or by being repeated along
    # what may be a batch. Contracted with data, it could be a weight all the same.
    learned: frozenset[int] = frozenset()
    unknown: bool = False  # made of parameters by an operation that is not known
    counts: Dims | None = None  # an iota, and along which dimensions
    one_hot: Dims | None = None  # along which dimensions it has a single one
    number: int | None = None  # a scalar integer that is known
    rest: Rest = Rest.DATA  # what is added to its terms

    def moved(
        self,
        f: Move,
        shape: Shape,
        term: Callable[[Term], Term] | None = None,
        echo: Callable[[Echo], Echo] | None = None,
    ) -> "Value":
        """The value after an operation that only moves its elements, as `f` moves dimensions.

        Args:
          f: moves dimensions.
          shape: of the result.
          term: moves a term, where more becomes of it.
          echo: the same for an echo.
        """
        term = term or (lambda t: t.moved(f))
        echo = echo or (lambda e: e.moved(f))
        return self._replace(
            shape=shape,
            varies=f(self.varies),
            terms=tuple([term(t) for t in self.terms]),
            echoes=regrouped([echo(e) for e in self.echoes]),
            counts=None if self.counts is None else f(self.counts),
            one_hot=None if self.one_hot is None else f(self.one_hot),
        )

    def in_doubt(self, why: str) -> "Value":
        """The value, of which no parameter can be told to be a weight."""
        return self._replace(terms=tuple([t._replace(unsure=t.unsure or why) for t in self.terms]))

    def without_gradient(self) -> "Value":
        """The value where no gradient flows: parameters in it are constants."""
        kind = Kind.CONSTANT if self.kind == Kind.PARAMETER else self.kind
        if kind == self.kind and not self.terms and not self.echoes:
            return self
        return self._replace(kind=kind, varies=self.support, terms=(), echoes=(), unknown=False)

    def plain(self) -> "Value":
        """The value as something that is no iota, one-hot or known number any more."""
        if self.counts is None and self.one_hot is None and self.number is None:
            return self
        return self._replace(counts=None, one_hot=None, number=None)

    @property
    def is_in_terms(self) -> bool:
        """Whether each of its summands has parameters whose use is still to come."""
        return self.rest == Rest.NONE and bool(self.terms) and not self.echoes

    @property
    def beside(self) -> Rest:
        """What its summands without terms are."""
        if self.terms or self.echoes:
            return Rest.DATA if self.echoes else self.rest
        if self.kind == Kind.CONSTANT:
            return Rest.CONSTANT if axes_of(self.varies) else Rest.NONE
        return Rest.DATA

    @property
    def support(self) -> Dims:
        """Along which dimensions it varies, whatever the reason."""
        dims = self.varies
        if dims == varying(self.shape):
            return dims
        for t in self.terms:
            dims = vary(dims, t.support)
        for e in self.echoes:
            dims = vary(dims, e.dims)
        return dims


def regrouped(echoes: Iterable[Echo]) -> tuple[Echo, ...]:
    """Echoes that are alike as one, and without those that have no digits left."""
    result: list[Echo] = []
    for e in filter(remains, echoes):
        for i, f in enumerate(result):
            alike = e.dims == f.dims and e[1:-2] == f[1:-2]  # most differ in their digits
            if alike and (e.how == "used" or e[-2:] == f[-2:]):
                seen, loops = e.seen | f.seen, e.loops | f.loops
                result[i] = f._replace(params=e.params | f.params, seen=seen, loops=loops)
                break
        else:
            result.append(e)
    return tuple(result)


def remains(e: Echo) -> bool:
    """Whether there is more to say of parameters than that their use is known."""
    if e.sliced or e.pending or (e.parts and e.data is None):
        return True
    for dim in e.dims:  # as in has_axes, any() takes twice as long
        if has_axes(dim):
            return True
    return False


def once(terms: Iterable[Term]) -> tuple[Term, ...]:
    """Each product once: with several data, it is one with their sum."""
    groups: dict[Term, list[Term]] = {}
    for t in terms:
        plain = t._replace(seen=0, loops=frozenset(), residual=False, learned=frozenset())
        if t.data is not None and t.picked is None and not t.bent:
            plain = plain._replace(data=(), rows=None, last=None, hot=None)
        groups.setdefault(plain, []).append(t)
    return tuple([functools.reduce(_with_sum, found) for found in groups.values()])


def both(x: Dims | None, y: Dims | None) -> Dims | None:
    """Along which dimensions either varies, of what may not be there."""
    return vary(x, y) if x is not None and y is not None else (y if x is None else x)


def _with_sum(s: Term, t: Term) -> Term:
    """The sum of two products of the same parameters, each with its own data."""
    return s._replace(
        data=both(s.data, t.data),
        rows=both(s.rows, t.rows),
        last=both(s.last, t.last),
        hot=s.hot if s.hot == t.hot else None,
        seen=s.seen | t.seen,
        loops=s.loops | t.loops,
        residual=s.residual or t.residual,
        learned=s.learned | t.learned,
    )


def constant(shape: Shape, kind: Kind = Kind.CONSTANT) -> Value:
    """A constant, or an input if `kind` is DATA: it varies along all its dimensions."""
    return Value(shape, kind, varies=varying(shape))


def nothing(shape: Shape) -> Value:
    """A constant that does not vary: a number."""
    return Value(shape, varies=foreign(shape))


def own_axes(node: Node) -> AxisSet:
    """The axes that are still there."""
    return axes_of(node.dims)


def shuffled_axes(nodes: Iterable[Node]) -> AxisSet:
    """The axes along which positions are not known, so that each image may be in another order."""
    found = [f for n in nodes for dim in n.dims for f in dim if f.stride is None and not f.whole]
    return NONE.union(*[f.axes for f in found])


class Use(NamedTuple):
    """Something a parameter is used for."""

    param: int
    role: str  # a key of verdict.ROLES
    where: str  # operation and module
    axes: AxisSet = NONE  # contracted over, or that would be if it is a weight here
    outputs: AxisSet = NONE
    batch: AxisSet = NONE
    why: str = ""
    chosen: bool = False  # of rows that data chose
    fed: bool = False  # what it meets was computed from itself
    derivative: Derivative = Derivative.NONE
    partners: frozenset[tuple[int, AxisSet]] = frozenset()  # one of which may be the weight

    @property
    def is_backward(self) -> bool:
        """Whether it is in a gradient that the function itself takes."""
        return self.derivative == Derivative.BACKWARD
