"""The aggregator: one learned query that summarises a set of patch tokens by class attention."""

import torch
from einops import rearrange
from jaxtyping import Float, Int
from timm.layers import Mlp
from torch import Tensor, nn

from selfpatch.config import AggregatorConfig
from selfpatch.errors import UserError


class ClassAttention(nn.Module):
    """Attention of queries to themselves and to patch tokens, which do not change.

    Three cases: one query to all patches, one query shared by many sets of patches, and one query per set.
    """

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def attend_all(
        self, query: Float[Tensor, "#B 1 D"], patch_tokens: Float[Tensor, "B N D"]
    ) -> Float[Tensor, "B 1 D"]:
        """One query per image, or one for all of them, to all patches."""
        q, own_k, own_v = self._project(query)
        scores = self._absorbed_scores(q, patch_tokens)  # [B, h, 1, N]
        own_weight, weights = self._softmax(q, own_k, scores)
        return self._merge(own_weight * own_v + self._absorbed_values(weights, patch_tokens))

    def attend_sets_shared_query(
        self, query: Float[Tensor, "1 1 D"], patch_tokens: Float[Tensor, "B N D"], indices: Int[Tensor, "B Q P"]
    ) -> Float[Tensor, "B Q D"]:
        """The same query to each set of patches: a patch has one score per head in whichever set it is."""
        q, own_k, own_v = self._project(query)
        scores = self._absorbed_scores(q, patch_tokens).transpose(2, 3)  # [B, h, N, 1]
        own_weight, weights = self._softmax(
            q, own_k, _gather(scores, indices).squeeze(-1)
        )  # [B, h, Q, 1], [B, h, Q, P]
        return self._merge(own_weight * own_v + self._gathered_values(weights, patch_tokens, indices))

    def attend_sets(
        self, queries: Float[Tensor, "B Q D"], patch_tokens: Float[Tensor, "B N D"], indices: Int[Tensor, "B Q P"]
    ) -> Float[Tensor, "B Q D"]:
        """Each query to its own set of patches; keys are projected once per patch, then gathered."""
        q, own_k, own_v = self._project(queries)
        k = _gather(self._heads(self.k(patch_tokens)), indices)  # [B, h, Q, P, d]
        own_weight, weights = self._softmax(q, own_k, (k @ q.unsqueeze(-1)).squeeze(-1))
        return self._merge(own_weight * own_v + self._gathered_values(weights, patch_tokens, indices))

    def _project(self, queries: Float[Tensor, "#B #Q D"]) -> tuple[Tensor, Tensor, Tensor]:
        """Scaled query, key and value of the queries themselves: [B or 1, h, Q or 1, d] each."""
        q, k, v = (self._heads(layer(queries)) for layer in (self.q, self.k, self.v))
        return q * q.shape[-1] ** -0.5, k, v

    def _softmax(
        self, q: Float[Tensor, "#B h #Q d"], own_k: Float[Tensor, "#B h #Q d"], scores: Float[Tensor, "B h Q P"]
    ) -> tuple[Float[Tensor, "B h Q 1"], Float[Tensor, "B h Q P"]]:
        """Weights of the query itself and of its patches, together 1."""
        own_score = (q * own_k).sum(dim=-1, keepdim=True).expand(*scores.shape[:3], -1)
        own_weight, weights = (
            torch.cat([own_score, scores], dim=-1).softmax(dim=-1).split([1, scores.shape[-1]], dim=-1)
        )
        return own_weight, weights

    def _absorbed_scores(
        self, q: Float[Tensor, "#B h 1 d"], patch_tokens: Float[Tensor, "B N D"]
    ) -> Float[Tensor, "B h 1 N"]:
        """Scores of one query with every patch.

        q . (K x + b) = (transpose(K) q) . x + q . b. With the key matrix taken into the query a patch costs h D
        products instead of D^2, and no keys are held.
        """
        matrix, bias = (part.unflatten(0, (self.num_heads, -1)) for part in (self.k.weight, self.k.bias))
        absorbed = torch.einsum("bhqd,hdc->bhc", q, matrix)
        scores = absorbed @ patch_tokens.transpose(1, 2)  # [B, h, N]
        return (scores + torch.einsum("bhqd,hd->bhq", q, bias)).unsqueeze(2)

    def _absorbed_values(
        self, weights: Float[Tensor, "B h 1 N"], patch_tokens: Float[Tensor, "B N D"]
    ) -> Float[Tensor, "B h 1 d"]:
        """Weighted sum of all patches' values.

        sum of w (V x + b) = V (sum of w x) + b (sum of w). With the value matrix after the sum it is applied once per
        head instead of once per patch, and no values are held.
        """
        matrix, bias = (part.unflatten(0, (self.num_heads, -1)) for part in (self.v.weight, self.v.bias))
        mean_tokens = weights.squeeze(2) @ patch_tokens  # [B, h, D]
        mean_values = torch.einsum("bhc,hdc->bhd", mean_tokens, matrix) + weights.sum(dim=-1) * bias
        return mean_values.unsqueeze(2)

    def _gathered_values(
        self, weights: Float[Tensor, "B h Q P"], patch_tokens: Float[Tensor, "B N D"], indices: Int[Tensor, "B Q P"]
    ) -> Float[Tensor, "B h Q d"]:
        """Weighted sum of the values of each set."""
        v = self._heads(self.v(patch_tokens))
        return (weights.unsqueeze(-2) @ _gather(v, indices)).squeeze(-2)

    def _merge(self, x: Float[Tensor, "B h Q d"]) -> Float[Tensor, "B Q D"]:
        return self.proj(rearrange(x, "b h q d -> b q (h d)"))

    def _heads(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B h T d"]:
        return rearrange(x, "b t (h d) -> b h t d", h=self.num_heads)


def _gather(x: Float[Tensor, "B h N d"], indices: Int[Tensor, "B Q P"]) -> Float[Tensor, "B h Q P d"]:
    batch = torch.arange(len(x), device=x.device)[:, None, None]
    return x.transpose(1, 2)[batch, indices].permute(0, 3, 1, 2, 4)  # [B, Q, P, h, d] -> [B, h, Q, P, d]


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
        indices: Int[Tensor, "B Q P"] | None,
    ) -> Float[Tensor, "B _ D"]:
        """Queries look at all patches, or each at its own set; a single one stands for all sets."""
        q, x = self.norm1(queries), self.norm1(patch_tokens)
        if indices is None:
            attended = self.attn.attend_all(q, x)
        elif queries.shape[:2] == (1, 1):
            attended = self.attn.attend_sets_shared_query(q, x, indices)
        else:
            attended = self.attn.attend_sets(q, x, indices)
        queries = queries + attended
        return queries + self.mlp(self.norm2(queries))


class Aggregator(nn.Module):
    """Summarizes all patches of an image into its image token, or a few chosen patches into one token each.

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
        """One token per image, out of all its patches."""
        return self._aggregate(patch_tokens, None).squeeze(1)

    def forward(self, patch_tokens: Float[Tensor, "B N D"], indices: Int[Tensor, "B Q P"]) -> Float[Tensor, "B Q D"]:
        """One token per set; row q of `indices` holds the indices of the patches in each set."""
        return self._aggregate(patch_tokens, indices)

    def _aggregate(
        self, patch_tokens: Float[Tensor, "B N D"], indices: Int[Tensor, "B Q P"] | None
    ) -> Float[Tensor, "B _ D"]:
        queries = self.query  # one for all images and sets, until they have looked at their patches
        for block in self.blocks:
            queries = block(queries, patch_tokens, indices)
        return self.norm(queries)
