"""Why a parameter is refused: every reason there is."""

from enum import StrEnum


class Why(StrEnum):
    """What the computation does that does not tell a fan-in; of several, the first is reported.

    An operation without a rule is named before any of these, since all else may follow from it.
    """

    INDEX = "a parameter is an index"
    CUSTOM = "a custom derivative may give it a gradient that its use hides"
    ENDLESS = "it is changed in every step of a loop"
    LOST = "the rule for this operation does not say what becomes of it"
    MANY = "it is in too many products of parameters"
    # What it is contracted with, or after.
    TWO_SIDES = "data meets the product that it is in from two sides, or reaches a part of it"
    EITHER = "contracted with another parameter, and either may be the weight"
    APART = "a derivative or a loop takes the einsum apart that it is in"
    BESIDE_DATA = "a product with data is contracted with parameters or constants"
    BEYOND_DATA = "summed over an axis that the data does not vary along"
    BENT_NETWORK = "a nonlinear function of a product of parameters"
    BENT_PRODUCT = "multiplied by data, and summed after something nonlinear"
    BENT_SUM = "added to data, and summed after a nonlinearity"
    SCALE = "combined with data, then contracted: a dense layer, or a scale followed by a sum"
    # Parts of its axes.
    PARTLY = "only a part of one of its axes is contracted, or in an order that was lost"
    DIAGONAL = "it is repeated along another axis of the weight that it is part of"
    SLICES = "products of several of its slices with data are added up, or one of them is chosen"
    SCATTERED = "its product with data is summed by a scatter"
    ONE_HOTS = "one-hots times slices of it are added up"
    CUT_ONE_HOT = "a one-hot is taken apart"
    CUT_PRODUCT = "a product of it with constants is taken apart"
    # What its products or sums with data are used for.
    LATER = "what data shares with it is summed later than the rest of its product with data"
    TWICE = "contracted with data twice, then added to data"
    STATISTIC = "a sum of it is contracted with something else"
    MADE = "its product with data is itself used as a weight"
    GATED = "added to data, then contracted with data: a gated weight or an activation"
    # Of all its uses together.
    BOTH = "contracted with data, and also added to it or multiplied by it"
    BACKWARD = "only the gradient that the function itself takes is used"
    CONSTANTS = "contracted with constants over different axes"
    RETURNED = "returned as it is"


_ORDER: dict[str, int] = {why: i for i, why in enumerate(Why)}


def priority(why: str) -> int:
    """Of several reasons, that with the least comes first."""
    return _ORDER.get(why, -1)
