"""Networks: features in, features out.

A network knows no probability. It says what it takes (`in_shape`) and what it gives (`out_shape`), and maps
`[B, *in_shape]` to `[B, *out_shape]`; a head (`lowerbound.heads`) makes a distribution of that. Shapes come from the
data: nothing here knows of 28 or 64.
"""

# The activations that networks are built with here, so that `lowerbound.nn` is enough to import.
from torch.nn import ELU, GELU, LeakyReLU, Module, ReLU, SiLU, Tanh

from lowerbound.nn.base import Network, check_picture, check_sizes, halvings
from lowerbound.nn.cells import CellInput
from lowerbound.nn.linear import Linear, linear
from lowerbound.nn.mlp import MLP, BottomUp, ResidualMLP, beside
from lowerbound.nn.pictures import ConvBlock, ConvDown, ConvFromGrid, ConvToGrid, ConvUp
from lowerbound.nn.residual import Doubled, ResidualBlock, ResNetDown, ResNetUp
from lowerbound.nn.sequences import GRU, CausalLayer, CausalTransformer, TokenEncoder, longest, token_counts

__all__ = [
    "ELU",
    "GELU",
    "GRU",
    "MLP",
    "BottomUp",
    "CausalLayer",
    "CausalTransformer",
    "CellInput",
    "ConvBlock",
    "ConvDown",
    "ConvFromGrid",
    "ConvToGrid",
    "ConvUp",
    "Doubled",
    "LeakyReLU",
    "Linear",
    "Module",
    "Network",
    "ReLU",
    "ResNetDown",
    "ResNetUp",
    "ResidualBlock",
    "ResidualMLP",
    "SiLU",
    "Tanh",
    "TokenEncoder",
    "beside",
    "check_picture",
    "check_sizes",
    "halvings",
    "linear",
    "longest",
    "token_counts",
]
