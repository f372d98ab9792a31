"""Modules: things that own parameters and call a recipe's ops."""
from minillm.nn.attention import Attention, Block, KeyValueCache
from minillm.nn.int8 import Int8Embedding, Int8Linear
from minillm.nn.layers import Dropout, Embedding, LayerNorm, Linear
from minillm.nn.module import Maker, Module

__all__ = ["Attention", "Block", "Dropout", "Embedding", "Int8Embedding", "Int8Linear", "KeyValueCache", "LayerNorm", "Linear",
           "Maker", "Module"]
