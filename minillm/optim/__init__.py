"""Optimizers and what goes with them: SGD, AdamW, moments in eight bits, the cosine schedule, and clipping by global norm."""
from minillm.optim.adamw import AdamW
from minillm.optim.clipping import clip_factor, global_norm
from minillm.optim.eight_bit import BLOCK_MAPS, DYNAMIC8, LINEAR8, BlockMap
from minillm.optim.optimizer import UPDATES, Optimizer
from minillm.optim.schedules import cosine_schedule
from minillm.optim.sgd import SGD

__all__ = ["BLOCK_MAPS", "DYNAMIC8", "LINEAR8", "SGD", "UPDATES", "AdamW", "BlockMap", "Optimizer", "clip_factor",
           "cosine_schedule", "global_norm"]
