"""What each primitive does to the parameters in its operands.

A rule is a function of the walk, the equation and the operands' `Value`s; it returns the result's
`Value` (a list of them for several results) and records the uses that the operation makes. To add
one, write it in the file for its kind, with its name in that file's RULES, and a test. A primitive
without a rule is opaque: parameters in its operands are refused.
"""

from collections.abc import Callable
from typing import Any

from . import contractions, control, elementwise, joining, movement, reductions, sharding, slicing

RULES: dict[str, Callable[..., Any]] = {
    **elementwise.RULES,
    **movement.RULES,
    **slicing.RULES,
    **joining.RULES,
    **reductions.RULES,
    **contractions.RULES,
    **control.RULES,
    **sharding.RULES,
}
