"""What a step uses a variable for: the words by which a policy selects."""

from __future__ import annotations

from enum import Enum


class Role(Enum):
    """What the forward pass uses a variable for."""

    KERNEL = "kernel"  # multiplied by an activation, in a matrix product, a convolution or any other Einstein sum
    DEPTHWISE = "depthwise"  # a filter for each channel
    EMBEDDING = "embedding"  # its rows become activations: by index, by a one-hot product, as positions or tokens
    BIAS = "bias"  # added to a product
    NORM = "norm"  # scale or offset of a normalization
    OTHER = "other"  # none of these, or not certainly one


FOLLOWED_BY = ("norm",)
"""What may be seen to come right after a variable."""
