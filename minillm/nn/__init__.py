"""Modules: things that own parameters and call a recipe's ops."""
from minillm.nn.attention import MLP, Attention, Block, CrossAttention, SelfAttention
from minillm.nn.caches import KeyValueCache
from minillm.nn.layers import Dropout, Embedding, LayerNorm, Linear
from minillm.nn.module import Maker, Module
from minillm.nn.quantized import QuantizedEmbedding, QuantizedLinear, QuantizedMatrix, quantized_layers
from minillm.nn.recurrent import LSTM

__all__ = ["LSTM", "MLP", "Attention", "Block", "CrossAttention", "Dropout", "Embedding", "KeyValueCache", "LayerNorm", "Linear",
           "Maker", "Module", "QuantizedEmbedding", "QuantizedLinear", "QuantizedMatrix", "SelfAttention", "quantized_layers"]
