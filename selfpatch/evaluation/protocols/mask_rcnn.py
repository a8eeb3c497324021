"""Settings of object detection and instance segmentation by Mask R-CNN."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Literal

from selfpatch.config import check
from selfpatch.evaluation.protocols.decoder_training import BLOCKS
from selfpatch.evaluation.protocols.ranges import check_positive


@dataclass(frozen=True)
class MaskRCNN:
    """The whole backbone is trained with a detector on COCO. The defaults are SelfPatch's protocol, 12 epochs.

    Source: alinlab/SelfPatch detection/, and through it XCiT's configuration for mmdetection.
    """

    # blocks whose tokens the neck reads, from 0, of twelve; another depth reads after the same shares of its blocks,
    # "simple" reads the last one only, and a pyramid such as Swin gives its four stages
    taps: tuple[int, int, int, int] = (3, 5, 7, 11)
    # of a plain transformer: "xcit" resizes each tap for a feature pyramid network, "simple" is ViTDet's pyramid
    neck: Literal["xcit", "simple"] = "xcit"
    # of the detector: "plain", or ViTDet's "normed" ones with more convolutions and layer norm
    heads: Literal["plain", "normed"] = "plain"
    # attention heads that a plain transformer is cut into anew; None: its own. SelfPatch's configuration has 8 for a
    # ViT-S/16 that was pretrained with 6, and its published numbers are of that
    upstream_heads: int | None = None
    # width of the feature pyramid and of the convolutions of the heads
    fpn_channels: int = 256
    # width of the head that gives classes and boxes
    box_head_dim: int = 1024
    # sides of the square anchors of each level in pixels
    anchor_sizes: tuple[int, int, int, int, int] = (32, 64, 128, 256, 512)
    # stochastic depth of the last block; it rises evenly from 0 at the first
    drop_path: float = 0.05
    # over the training images
    epochs: float = 12
    # images a step
    batch_size: int = 16
    # parts that a step is cut into, one after another on the device; batch norm of the "xcit" neck sees one at a time
    accumulate: int = 1
    # peak learning rate of AdamW
    lr: float = 5e-5
    # on all but position embeddings, class token and norms
    weight_decay: float = 0.05
    # factor on the learning rate of each block, from the one above it
    layer_decay: float = 1.0
    # steps in which the learning rate rises
    warmup_steps: int = 1000
    # share of the learning rate at the first step
    warmup_start: float = 0.001
    # after how many epochs the learning rate falls to a tenth, each time
    decay_epochs: tuple[float, ...] = (8, 11)
    # largest norm of the gradient; 0 leaves it alone
    clip_norm: float = 0.0
    # of a mirror image in training
    hflip_prob: float = 0.5
    # of training images: a random short side, half of them cropped before ("multi_scale"), a random scale and a crop
    # ("large_scale_jitter"), or the size of the test ("none")
    augmentation: Literal["multi_scale", "large_scale_jitter", "none"] = "multi_scale"
    # short sides to choose from, "multi_scale"
    short_sides: tuple[int, ...] = tuple(range(480, 801, 32))
    # short sides to choose from before a crop, "multi_scale"
    crop_short_sides: tuple[int, ...] = (400, 500, 600)
    # sides of the crop, from and to, each drawn by itself, "multi_scale"
    crop_sides: tuple[int, int] = (384, 600)
    # factor on the size of the test, from and to, "large_scale_jitter"
    jitter: tuple[float, float] = (0.1, 2.0)
    # short side of test images in pixels
    image_size: int = 800
    # pixels that the long side has at most, of test and training images
    long_side: int = 1333
    # proposals a level before their suppression, in training
    rpn_pre_nms_top_n_train: int = 2000
    # and in the test
    rpn_pre_nms_top_n_test: int = 1000
    # proposals an image after their suppression, in training
    rpn_post_nms_top_n_train: int = 1000
    # and in the test
    rpn_post_nms_top_n_test: int = 1000
    # IoU above which the worse of two proposals goes
    rpn_nms: float = 0.7
    # anchors an image that are learned from
    rpn_batch_size_per_image: int = 256
    # regions an image that are learned from
    box_batch_size_per_image: int = 512
    # least score of a detection
    score_threshold: float = 0.05
    # IoU above which the worse of two detections of one class goes
    nms: float = 0.5
    # detections an image
    max_boxes: int = 100
    # numbers of the training: float32, bf16, or auto (bf16 on a GPU that has it); the test is in float32
    precision: Literal["float32", "bf16", "auto"] = "auto"
    # whether blocks compute their activations again instead of keeping them: less memory, a third slower, same numbers
    recompute: bool = field(default=False, compare=False)
    # of the heads' start, the order of the images and how they vary
    seed: int = 0
    # at most so many images of each split, spread evenly over it; None: all
    max_images: int | None = None

    def __post_init__(self):
        check_positive(
            self, "upstream_heads", "fpn_channels", "box_head_dim", "epochs", "batch_size", "accumulate", "lr",
            "image_size", "rpn_pre_nms_top_n_train", "rpn_pre_nms_top_n_test", "rpn_post_nms_top_n_train",
            "rpn_post_nms_top_n_test", "rpn_batch_size_per_image", "box_batch_size_per_image", "max_boxes",
            "max_images",
        )  # fmt: skip
        check(math.isfinite(self.epochs), f"epochs is {self.epochs}; it must be finite")
        check(
            all(0 <= tap < BLOCKS for tap in self.taps) and list(self.taps) == sorted(self.taps),
            f"taps is {self.taps}; they are four of the blocks 0 to {BLOCKS - 1}, in order",
        )
        for name in ("anchor_sizes", "short_sides", "crop_short_sides"):
            sides = getattr(self, name)
            check(
                len(sides) > 0 and min(sides) > 0,
                f"{name.replace('_', '-')} is {sides}; at least one number of pixels above 0 is needed",
            )
        for name in ("crop_sides", "jitter"):
            low, high = getattr(self, name)
            check(0 < low <= high, f"{name.replace('_', '-')} is ({low}, {high}); 0 < low <= high is needed")
        check(
            self.long_side >= self.image_size,
            f"long-side is {self.long_side} with image-size {self.image_size}, the short side; make it no smaller",
        )
        check(
            self.accumulate <= self.batch_size,
            f"accumulate is {self.accumulate} with batch-size {self.batch_size}; a part has at least one image",
        )
        check(0 <= self.drop_path < 1, f"drop-path is {self.drop_path}; it is a probability in [0, 1)")
        check(0 <= self.hflip_prob <= 1, f"hflip-prob is {self.hflip_prob}; it is a probability in [0, 1]")
        check(0 < self.layer_decay <= 1, f"layer-decay is {self.layer_decay}; it is a factor in (0, 1]")
        for name in ("warmup_start", "rpn_nms", "nms", "score_threshold"):
            value = getattr(self, name)
            check(0 <= value <= 1, f"{name.replace('_', '-')} is {value}; it must be in [0, 1]")
        for name in ("weight_decay", "clip_norm", "warmup_steps", "seed"):
            check(getattr(self, name) >= 0, f"{name.replace('_', '-')} is {getattr(self, name)}; it cannot be negative")
        check(
            all(0 < epoch < math.inf for epoch in self.decay_epochs)
            and list(self.decay_epochs) == sorted(self.decay_epochs),
            f"decay-epochs is {self.decay_epochs}; numbers of epochs above 0 are needed, in order",
        )


PAPER_1X = MaskRCNN()
# ViTDet's training of a ViT-B on COCO, 100 epochs: detectron2 projects/ViTDet/configs/COCO/mask_rcnn_vitdet_b_100ep.py.
# Differs: attention is global in all blocks, and positions are those of the backbone, as the model brings them along.
VITDET = MaskRCNN(
    neck="simple",
    heads="normed",
    drop_path=0.1,
    epochs=100,
    batch_size=64,
    lr=1e-4,
    weight_decay=0.1,
    layer_decay=0.7,
    warmup_steps=250,
    decay_epochs=(88.889, 96.296),  # 163,889 and 177,546 of 184,375 steps
    augmentation="large_scale_jitter",
    image_size=1024,
    long_side=1024,
)

PRESETS = {
    "paper-1x": PAPER_1X,
    "vitdet": VITDET,
    # nobody's protocol: shows that everything runs, a minute or two on a CPU
    "quick": dataclasses.replace(
        PAPER_1X,
        epochs=2,
        batch_size=4,
        warmup_steps=0,
        decay_epochs=(1.5,),
        augmentation="none",
        image_size=192,
        long_side=320,
        rpn_pre_nms_top_n_train=200,
        rpn_pre_nms_top_n_test=100,
        rpn_post_nms_top_n_train=100,
        rpn_post_nms_top_n_test=50,
        box_batch_size_per_image=64,
        max_images=40,
    ),
}
