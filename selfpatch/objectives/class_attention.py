"""The aggregator: one learned query that summarises a set of patch tokens by class attention."""

import torch
from einops import rearrange
from jaxtyping import Float, Int
from timm.layers import Mlp
from torch import Tensor, nn

from selfpatch.config import AggregatorConfig
from selfpatch.errors import UserError


class ClassAttention(nn.Module):
    """Attention of queries to themselves and to patch tokens, all of them or each query to its own few `key_indices`.

    The patch tokens do not change. A single query may stand for all images and all sets of key_indices.
    """

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(
        self,
        queries: Float[Tensor, "#B #Q D"],
        patch_tokens: Float[Tensor, "B N D"],
        key_indices: Int[Tensor, "B #Q P"] | None,
    ) -> Float[Tensor, "B #Q D"]:
        q, own_k, own_v = (self._heads(layer(queries)) for layer in (self.q, self.k, self.v))  # [B or 1, h, Q or 1, d]
        q = q * q.shape[-1] ** -0.5
        own_score = (q * own_k).sum(dim=-1, keepdim=True)  # [B or 1, h, Q or 1, 1]
        if queries.shape[1] > 1:
            assert key_indices is not None
            k = self._heads(self.k(patch_tokens))  # once a patch, then gathered by the queries that ask
            scores = (_gather(k, key_indices) @ q.unsqueeze(-1)).squeeze(-1)  # [B, h, Q, P]
        else:
            # One query for all sets: a patch has one score a head in whichever set, so numbers are gathered, not keys.
            scores = self._scores(q, patch_tokens)  # [B, h, 1, N]
            if key_indices is not None:
                scores = _gather(scores.transpose(2, 3), key_indices).squeeze(-1)  # [B, h, Q, P]
        shape = (*scores.shape[:3], -1)
        own_weight, weights = (
            torch.cat([own_score.expand(shape), scores], dim=-1).softmax(dim=-1).split([1, scores.shape[-1]], dim=-1)
        )
        if key_indices is None:
            mixed = self._mean_value(weights, patch_tokens)
        else:
            v = self._heads(self.v(patch_tokens))
            mixed = (weights.unsqueeze(-2) @ _gather(v, key_indices)).squeeze(-2)
        return self.proj(rearrange(own_weight * own_v + mixed, "b h q d -> b q (h d)"))

    def _scores(self, q: Float[Tensor, "#B h 1 d"], patch_tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B h 1 N"]:
        """Of one query with every patch.

        q . (K x + b) = (transpose(K) q) . x + q . b. With the key matrix taken into the query a patch costs h D
        products instead of D^2, and no keys are held.
        """
        matrix, bias = (part.unflatten(0, (self.num_heads, -1)) for part in (self.k.weight, self.k.bias))
        absorbed = torch.einsum("bhqd,hdc->bhc", q, matrix)
        scores = absorbed @ patch_tokens.transpose(1, 2)  # [B, h, N]
        return (scores + torch.einsum("bhqd,hd->bhq", q, bias)).unsqueeze(2)

    def _mean_value(
        self, weights: Float[Tensor, "B h 1 N"], patch_tokens: Float[Tensor, "B N D"]
    ) -> Float[Tensor, "B h 1 d"]:
        """The weighted sum of all patches' values.

        sum of w (V x + b) = V (sum of w x) + b (sum of w). With the value matrix after the sum it is applied once a
        head instead of once a patch, and no values are held.
        """
        matrix, bias = (part.unflatten(0, (self.num_heads, -1)) for part in (self.v.weight, self.v.bias))
        mean_tokens = weights.squeeze(2) @ patch_tokens  # [B, h, D]
        mean_values = torch.einsum("bhc,hdc->bhd", mean_tokens, matrix) + weights.sum(dim=-1) * bias
        return mean_values.unsqueeze(2)

    def _heads(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B h T d"]:
        return rearrange(x, "b t (h d) -> b h t d", h=self.num_heads)


def _gather(x: Float[Tensor, "B h N d"], key_indices: Int[Tensor, "B Q P"]) -> Float[Tensor, "B h Q P d"]:
    batch = torch.arange(len(x), device=x.device)[:, None, None]
    return x.transpose(1, 2)[batch, key_indices].permute(0, 3, 1, 2, 4)  # [B, Q, P, h, d] -> [B, h, Q, P, d]


class ClassAttentionBlock(nn.Module):
    """Pre-norm class attention and MLP on the query; CaiT's block without LayerScale."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = ClassAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(
        self,
        queries: Float[Tensor, "#B #Q D"],
        patch_tokens: Float[Tensor, "B N D"],
        key_indices: Int[Tensor, "B #Q P"] | None,
    ) -> Float[Tensor, "B #Q D"]:
        queries = queries + self.attn(self.norm1(queries), self.norm1(patch_tokens), key_indices)
        return queries + self.mlp(self.norm2(queries))


class Aggregator(nn.Module):
    """Summarises all patches of an image into its image token, or a few chosen patches into one token each.

    Its final norm serves aggregated and plain patch tokens alike (`norm`).

    Source: SelfPatch (CVPR 2022), sec. 3.2; alinlab/SelfPatch@81aef14, where it is called ca_head.
    """

    def __init__(self, dim: int, num_heads: int, config: AggregatorConfig):
        super().__init__()
        num_heads = config.num_heads or num_heads
        if dim % num_heads:
            raise UserError(
                f"aggregator.num-heads {num_heads} does not divide the backbone's width {dim}; choose a divisor"
            )
        self.query = nn.Parameter(torch.zeros(1, 1, dim))
        self.blocks = nn.ModuleList(
            ClassAttentionBlock(dim, num_heads, config.mlp_ratio) for _ in range(config.num_blocks)
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        nn.init.trunc_normal_(self.query, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def image_token(self, patch_tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B D"]:
        """One token an image, out of all its patches."""
        return self._aggregate(patch_tokens, None).squeeze(1)

    def forward(self, patch_tokens: Float[Tensor, "B N D"], indices: Int[Tensor, "B Q P"]) -> Float[Tensor, "B Q D"]:
        """One token per set; row q of `indices` holds the indices of the patches in each set."""
        return self._aggregate(patch_tokens, indices)

    def _aggregate(
        self, patch_tokens: Float[Tensor, "B N D"], key_indices: Int[Tensor, "B Q P"] | None
    ) -> Float[Tensor, "B _ D"]:
        queries = self.query  # one for all images and sets, until they have looked at their patches
        for block in self.blocks:
            queries = block(queries, patch_tokens, key_indices)
        return self.norm(queries)
