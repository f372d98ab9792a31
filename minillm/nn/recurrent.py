"""The LSTM layer."""
import numpy as np

from minillm.autograd.tensor import Tensor
from minillm.nn.module import Maker, Module
from minillm.precision.recipe import Ops


class LSTM(Module):
    """Sequences (B,T,C) -> hidden states (B,T,H); with a mask (B,T), the state passes by tokens where it is False.

    weight (4H,C) from Glorot's uniform distribution, recurrent (4H,H) with orthogonal columns, bias (4H,) 1 for the forget gate,
    so that a cell keeps what it has at first, and 0 for the others: as in Keras. Jozefowicz et al. 2015, section 2.2.
    """

    def __init__(self, ops: Ops, make: Maker, C: int, H: int):
        self.ops = ops
        self.weight, self.recurrent = make.glorot(4 * H, C), make.orthogonal(4 * H, H)
        self.bias = make.leaf(np.repeat(np.array([0, 1, 0, 0], np.float32), H))

    def forward(self, x: Tensor, mask: np.ndarray | None = None) -> Tensor:
        return self.ops.lstm(x, self.weight, self.recurrent, self.bias, mask)
