"""Features cached on disk, so that tasks that see the same pixels encode them once."""

import hashlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from selfpatch.backbones.backbone import Backbone, Tokens
from selfpatch.evaluation.fingerprint import fingerprint
from selfpatch.output.atomic_files import atomic_write

SPARE_SHARE = 0.05  # of the disk, which is left free
Encoded = dict[str, Tensor]  # of one image or of a batch


class CachedBackbone(Backbone):
    """A backbone in evaluation mode whose features are cached, one file per image.

    A file's name is the SHA-256 of the weights, of what was asked for (tokens, keys, which stages) and of the very
    pixels as the backbone gets them; so another size, crop or normalisation is another file, and nothing has to be
    cleared when weights or settings change. Numbers are kept in float32: scores are what they would be without.

    Args:
        folder: made if needed; several processes may share it.
        max_bytes: nothing is written beyond so many bytes below `folder`, nor when the disk is nearly full.
    """

    def __init__(self, backbone: Backbone, folder: Path, *, max_bytes: float):
        super().__init__()
        self.unwrap_cache = backbone
        self.patch_size, self.embed_dim, self.stages = backbone.patch_size, backbone.embed_dim, backbone.stages
        self.num_channels, self.num_heads = backbone.num_channels, backbone.num_heads
        self.has_cls_token = backbone.has_cls_token
        self.mean, self.std, self.notes = backbone.mean, backbone.std, backbone.notes
        self.pixels = backbone.pixels
        self.num_found = self.num_encoded = 0
        self._folder, self._max_bytes = folder, max_bytes
        self._model = fingerprint(backbone)
        folder.mkdir(parents=True, exist_ok=True)
        self._num_bytes = sum(file.stat().st_size for file in folder.glob("*/*.safetensors"))

    def forward(self, images: Float[Tensor, "B C H W"], masks: Bool[Tensor, "B N"] | None = None) -> Tokens:
        assert masks is None

        def encode(images: Float[Tensor, "B C H W"]) -> Encoded:
            tokens = self.unwrap_cache(images)
            return {"patch": tokens.patch_tokens} | ({} if tokens.cls_token is None else {"cls": tokens.cls_token})

        encoded = self._cached("tokens", images, encode)
        grid_size = images.shape[2] // self.patch_size[0], images.shape[3] // self.patch_size[1]
        return Tokens(encoded.get("cls"), encoded["patch"], grid_size)

    def forward_intermediates(
        self, images: Float[Tensor, "B C H W"], indices: Sequence[int]
    ) -> list[Float[Tensor, "B _ _ _"]]:
        def encode(images: Float[Tensor, "B C H W"]) -> Encoded:
            return {str(i): x for i, x in enumerate(self.unwrap_cache.forward_intermediates(images, indices))}

        encoded = self._cached(f"stages {[index % len(self.stages) for index in indices]}", images, encode)
        return [encoded[str(i)] for i in range(len(indices))]

    def last_attention_keys(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D R S"]:
        return self._cached("keys", images, lambda images: {"keys": self.unwrap_cache.last_attention_keys(images)})[
            "keys"
        ]

    @torch.no_grad()
    def _cached(
        self, what: str, images: Float[Tensor, "B C H W"], encode: Callable[[Float[Tensor, "B C H W"]], Encoded]
    ) -> Encoded:
        files = [self._file(what, image) for image in images.detach().float().cpu()]
        kept = {i: found for i, file in enumerate(files) if (found := self._read(file)) is not None}
        self.num_found += len(kept)
        if missing := [i for i in range(len(files)) if i not in kept]:
            encoded = {name: value.float() for name, value in encode(images[missing]).items()}
            for place, i in enumerate(missing):
                kept[i] = {name: value[place] for name, value in encoded.items()}
                self._write(files[i], kept[i])
            self.num_encoded += len(missing)
        return {name: torch.stack([kept[i][name].to(images.device) for i in range(len(files))]) for name in kept[0]}

    def _file(self, what: str, image: Float[Tensor, "C H W"]) -> Path:
        digest = hashlib.sha256(f"{self._model} {what} {tuple(image.shape)}".encode())
        digest.update(image.contiguous().numpy())
        name = digest.hexdigest()
        return self._folder / name[:2] / f"{name}.safetensors"

    def _read(self, file: Path) -> Encoded | None:
        try:
            return load_file(file) if file.exists() else None
        except (SafetensorError, OSError):  # damaged, or just removed: it is made again
            return None

    def _write(self, file: Path, encoded: Encoded) -> None:
        num_bytes = sum(value.nbytes for value in encoded.values())
        disk = shutil.disk_usage(self._folder)
        if self._num_bytes + num_bytes > self._max_bytes or disk.free - num_bytes < SPARE_SHARE * disk.total:
            return
        file.parent.mkdir(exist_ok=True)
        with atomic_write(file) as temporary:
            save_file({name: value.cpu().contiguous() for name, value in encoded.items()}, temporary)
        self._num_bytes += num_bytes


def unwrap_cache(backbone: Backbone) -> Backbone:
    """The backbone itself: for training crops, no two of which are alike."""
    return backbone.unwrap_cache if isinstance(backbone, CachedBackbone) else backbone
