"""Vision transformers with Hugging Face's names and structure: a module tree of our own, for files in that layout.

Source of the formulas: the papers of ViT, DINOv2, DINOv3 and CLIP; the names are those that transformers writes.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

ACTIVATIONS = {
    "gelu": lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "gelu_pytorch_tanh": lambda x: x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
}


def named(**children: Any) -> nn.Module:
    """A module with these children, lists becoming numbered ones; names with a dot are nested."""
    module = nn.Module()
    for name, child in children.items():
        if isinstance(child, nn.Parameter):
            module.register_parameter(name, child)
        else:
            module.add_module(name, nn.ModuleList(child) if isinstance(child, list) else child)
    return module


def attend(query: Tensor, key: Tensor, value: Tensor, num_heads: int) -> Tensor:
    """[T, D] each, head by head."""
    heads = [
        (q @ k.T / math.sqrt(q.shape[-1])).softmax(dim=-1) @ v
        for q, k, v in zip(*(x.chunk(num_heads, dim=-1) for x in (query, key, value)), strict=True)
    ]
    return torch.cat(heads, dim=-1)


class PlainViT(nn.Module):
    """ViTModel, Dinov2Model and Dinov2WithRegistersModel."""

    def __init__(
        self,
        *,
        kind: str,  # "vit", "dinov2"
        width: int = 24,
        depth: int = 2,
        num_heads: int = 3,
        patch: int = 8,
        grid: int = 3,
        num_registers: int = 0,
        gated: bool = False,
        eps: float = 1e-6,
    ):
        super().__init__()
        self.kind, self.num_heads, self.patch, self.num_registers, self.eps = kind, num_heads, patch, num_registers, eps
        embeddings = {
            "cls_token": nn.Parameter(torch.zeros(1, 1, width)),
            "position_embeddings": nn.Parameter(torch.zeros(1, 1 + grid**2, width)),
            "patch_embeddings": named(projection=nn.Conv2d(3, width, patch, patch)),
        }
        if kind == "dinov2":
            embeddings["mask_token"] = nn.Parameter(torch.zeros(1, width))
        if num_registers:
            embeddings["register_tokens"] = nn.Parameter(torch.zeros(1, num_registers, width))
        self.embeddings = named(**embeddings)
        self.encoder = named(layer=[self._layer(width, gated) for _ in range(depth)])
        self.layernorm = nn.LayerNorm(width, eps=eps)
        if kind == "vit":
            self.pooler = named(dense=nn.Linear(width, width))
        torch.manual_seed(0)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3)

    def _layer(self, width: int, gated: bool) -> nn.Module:
        def linear(to: int = width, of: int = width) -> nn.Module:
            return nn.Linear(of, to)

        attention = named(attention=named(query=linear(), key=linear(), value=linear()), output=named(dense=linear()))
        norms = [nn.LayerNorm(width, eps=self.eps), nn.LayerNorm(width, eps=self.eps)]
        if self.kind == "vit":
            return named(
                attention=attention,
                layernorm_before=norms[0],
                layernorm_after=norms[1],
                intermediate=named(dense=linear(4 * width)),
                output=named(dense=linear(of=4 * width)),
            )
        hidden = (int(width * 4 * 2 / 3) + 7) // 8 * 8
        mlp = (
            named(weights_in=linear(2 * hidden), weights_out=linear(of=hidden))
            if gated
            else named(fc1=linear(4 * width), fc2=linear(of=4 * width))
        )
        scales = [named(lambda1=nn.Parameter(torch.ones(width))) for _ in range(2)]
        return named(
            attention=attention, norm1=norms[0], norm2=norms[1], mlp=mlp, layer_scale1=scales[0], layer_scale2=scales[1]
        )

    def forward(self, image: Tensor) -> Tensor:
        """The final tokens [T, D] of an image [3, H, W] of the size that positions were made for."""
        e: Any = self.embeddings
        patches = e.patch_embeddings.projection(image[None])[0].flatten(1).T
        x = torch.cat([e.cls_token[0], patches]) + e.position_embeddings[0]
        if self.num_registers:
            x = torch.cat([x[:1], e.register_tokens[0], x[1:]])
        for layer in self.encoder.layer:  # type: ignore[union-attr]
            x = self._forward_layer(layer, x)
        return self.layernorm(x)

    def _forward_layer(self, layer: Any, x: Tensor) -> Tensor:
        before, after = (
            (layer.layernorm_before, layer.layernorm_after) if self.kind == "vit" else (layer.norm1, layer.norm2)
        )
        own, y = layer.attention.attention, before(x)
        y = layer.attention.output.dense(attend(own.query(y), own.key(y), own.value(y), self.num_heads))
        if self.kind == "vit":
            x = x + y
            return x + layer.output.dense(ACTIVATIONS["gelu"](layer.intermediate.dense(after(x))))
        x = x + layer.layer_scale1.lambda1 * y
        y = after(x)
        if hasattr(layer.mlp, "weights_in"):
            gate, value = layer.mlp.weights_in(y).chunk(2, dim=-1)
            y = layer.mlp.weights_out(gate * torch.sigmoid(gate) * value)
        else:
            y = layer.mlp.fc2(ACTIVATIONS["gelu"](layer.mlp.fc1(y)))
        return x + layer.layer_scale2.lambda1 * y


class PlainCLIP(nn.Module):
    """CLIPVisionModel and SiglipVisionModel, with every token through the last norm."""

    def __init__(
        self,
        *,
        activation: str = "quick_gelu",
        siglip: bool = False,
        width: int = 24,
        num_heads: int = 3,
        eps: float = 1e-5,
    ):
        super().__init__()
        self.activation, self.siglip, self.num_heads = activation, siglip, num_heads
        embeddings: dict[str, Any] = {
            "patch_embedding": nn.Conv2d(3, width, 8, 8, bias=siglip),
            "position_embedding": nn.Embedding(9 + (not siglip), width),
        }
        if not siglip:
            embeddings["class_embedding"] = nn.Parameter(torch.zeros(width))
            self.pre_layrnorm = nn.LayerNorm(width, eps=eps)
        self.embeddings = named(**embeddings)
        self.encoder = named(
            layers=[
                named(
                    layer_norm1=nn.LayerNorm(width, eps=eps),
                    layer_norm2=nn.LayerNorm(width, eps=eps),
                    self_attn=named(**{f"{name}_proj": nn.Linear(width, width) for name in ("q", "k", "v", "out")}),
                    mlp=named(fc1=nn.Linear(width, 4 * width), fc2=nn.Linear(4 * width, width)),
                )
                for _ in range(2)
            ]
        )
        self.post_layernorm = nn.LayerNorm(width, eps=eps)
        torch.manual_seed(0)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3)

    def forward(self, image: Tensor) -> Tensor:
        e: Any = self.embeddings
        x = e.patch_embedding(image[None])[0].flatten(1).T
        if not self.siglip:
            x = torch.cat([e.class_embedding[None], x])
        x = x + e.position_embedding.weight
        if not self.siglip:
            x = self.pre_layrnorm(x)
        for layer in self.encoder.layers:  # type: ignore[union-attr]
            layer: Any
            own, y = layer.self_attn, layer.layer_norm1(x)
            x = x + own.out_proj(attend(own.q_proj(y), own.k_proj(y), own.v_proj(y), self.num_heads))
            x = x + layer.mlp.fc2(ACTIVATIONS[self.activation](layer.mlp.fc1(layer.layer_norm2(x))))
        return self.post_layernorm(x)
