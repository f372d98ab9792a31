"""Oracles and derived error bounds, for our tests and for users'. FLOAT64 exists only here."""
import numpy as np

from minillm.formats import Format

FLOAT64 = Format("float64", 11, 52, np.float64, np.float64)
