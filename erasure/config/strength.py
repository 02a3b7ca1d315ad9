"""The range of an edit's strength. No torch here."""

import math
import sys
from numbers import Real

from erasure.errors import UserError

STRENGTH_RANGE = (-10.0, 10.0)


def check_strength(strength: float) -> float:
    """Return the strength as a float.

    Raises:
        UserError: not a finite number from -10 to 10; True and False do not count as numbers.
    """
    low, high = STRENGTH_RANGE
    is_number = isinstance(strength, Real) and not isinstance(strength, bool)
    if is_number and low <= strength <= high:  # false for NaN
        return float(strength)
    is_huge = is_number and abs(strength) > sys.float_info.max and strength != math.inf and strength != -math.inf
    value_text = "a number of more than 300 digits" if is_huge else repr(strength)[:40]  # Python refuses to print 5,000
    raise UserError(f"the strength of an edit is a number from {low:g} to {high:g} (0: the base, 1: as it was made), got {value_text}.")
