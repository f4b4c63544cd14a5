"""Attention pooling: the mean of a feature map asks all its positions.

With tokens z_0 = mean_i h_i and z_i = h_i, each plus a learned position embedding, the output is

    W_o concat_heads(softmax(q(z_0) k(z)^T / sqrt(d)) v(z)).

Only the first token's output is read, so only its query is computed.

References:
    Radford et al., "Learning Transferable Visual Models From Natural Language Supervision"
        (arXiv:2103.00020), section 2.4.
"""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor, nn


class AttentionPool2d(nn.Module):
    """Pools a feature map of one size into a vector.

    Args:
        channels: Of the feature map; a multiple of `head_width`.
        size: Its height and width.
        head_width: Channels of one attention head.
        out_features: Of the vector.
    """

    def __init__(self, channels: int, size: int, head_width: int, out_features: int) -> None:
        super().__init__()
        self.heads = channels // head_width
        self.positional_embedding = nn.Parameter(torch.randn(channels, size**2 + 1) / channels**0.5)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.Linear(channels, out_features)

    def forward(self, features: Tensor) -> Tensor:
        """From (batch, channels, size, size) to (batch, out_features)."""
        positions = features.flatten(2)
        tokens = torch.cat([positions.mean(dim=2, keepdim=True), positions], dim=2)
        tokens = (tokens + self.positional_embedding).transpose(1, 2)
        query, key, value = (
            layer(given).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for layer, given in ((self.to_q, tokens[:, :1]), (self.to_k, tokens), (self.to_v, tokens))
        )
        pooled = functional.scaled_dot_product_attention(query, key, value)
        return self.to_out(pooled.transpose(1, 2).flatten(1))
