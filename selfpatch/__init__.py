"""selfpatch: from a folder of unlabeled images to a vision transformer whose patches carry meaning.

import selfpatch

selfpatch.pretrain("images/", "run/", recipe="dino-selfpatch-small")
selfpatch.evaluate("run/", data="ade20k/", out="scores/")
backbone = selfpatch.load_backbone("run/")  # images [B, 3, H, W] -> Tokens
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selfpatch.backbones.pretrained import load_backbone
    from selfpatch.commands.compare import compare
    from selfpatch.commands.evaluate import evaluate
    from selfpatch.commands.pretrain import pretrain
    from selfpatch.commands.study.study import study

__all__ = ["compare", "evaluate", "load_backbone", "pretrain", "study"]

_PLACES = {
    "compare": "selfpatch.commands.compare",
    "evaluate": "selfpatch.commands.evaluate",
    "load_backbone": "selfpatch.backbones.pretrained",
    "pretrain": "selfpatch.commands.pretrain",
    "study": "selfpatch.commands.study.study",
}


def __getattr__(name: str) -> Any:
    # On first use, so that `import selfpatch` and the command line's help need no torch.
    if name not in _PLACES:
        raise AttributeError(f"module 'selfpatch' has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)
