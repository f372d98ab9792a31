"""Oracles, derived error bounds and Hypothesis strategies, for our tests and for users'. FLOAT64 exists only here.

`exact` judges with fractions.Fraction, `bounds` says how far a result may lie from exact, `distance` counts ulps, and
`strategies` draws the numbers that find bugs: it needs Hypothesis, which comes with `pip install minillm[test]`.
"""
import numpy as np

from minillm.formats import Format
from minillm.testing.bounds import (
    after_rounding,
    chunked_bound,
    dot_bound,
    gamma,
    kahan_bound,
    layer_norm_bound,
    neumaier_bound,
    pairwise_bound,
    rounding_bound,
    softmax_bound,
    sum_bound,
)
from minillm.testing.distance import line_up, ulp_distance
from minillm.testing.exact import exact_decode, exact_dot, exact_neighbours, exact_round, exact_sum

FLOAT64 = Format("float64", 11, 52, np.float64, np.float64)

__all__ = [
    "FLOAT64", "after_rounding", "chunked_bound", "dot_bound", "exact_decode", "exact_dot", "exact_neighbours", "exact_round",
    "exact_sum", "gamma", "kahan_bound", "layer_norm_bound", "line_up", "neumaier_bound", "pairwise_bound", "rounding_bound",
    "softmax_bound", "sum_bound", "ulp_distance",
]
