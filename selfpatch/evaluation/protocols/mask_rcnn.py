"""Settings of object detection and instance segmentation by Mask R-CNN."""

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Literal

from selfpatch.config.ranges import (
    Ascending,
    Config,
    DropProbability,
    Fraction,
    NonEmpty,
    NonNegative,
    Positive,
    Probability,
    Seed,
    UnitInterval,
)
from selfpatch.evaluation.protocols.decoder_training import BlockIndex


@dataclass(frozen=True)
class MaskRCNN(Config):
    """The whole backbone is trained with a detector on COCO. The defaults are SelfPatch's protocol, 12 epochs.

    Source: alinlab/SelfPatch detection/, and through it XCiT's configuration for mmdetection.
    """

    # blocks whose tokens the neck reads, from 0, of twelve; in a backbone of another depth, the blocks at the same
    # fractions of its depth; "simple" reads the last block only, a hierarchical backbone such as Swin its four stages
    out_indices: Annotated[tuple[int, int, int, int], BlockIndex, Ascending] = (3, 5, 7, 11)
    # neck of a plain transformer: "xcit" resizes the tokens of each block for a feature pyramid network, "simple" is
    # ViTDet's simple feature pyramid
    neck: Literal["xcit", "simple"] = "xcit"
    # norm in the detector's heads: "none", or "layer_norm", as ViTDet with more convolutions
    head_norm: Literal["none", "layer_norm"] = "none"
    # number of attention heads to run a plain transformer with, instead of its own; None: its own. SelfPatch's
    # configuration has 8 for a ViT-S/16 that was pretrained with 6, and its published numbers are of that
    upstream_heads: Annotated[int | None, Positive] = None
    # width of the feature pyramid and of the convolutions of the heads
    fpn_channels: Annotated[int, Positive] = 256
    # width of the head that predicts classes and boxes
    box_head_dim: Annotated[int, Positive] = 1024
    # side of the square anchors of each pyramid level in pixels
    anchor_sizes: Annotated[tuple[int, int, int, int, int], Positive] = (32, 64, 128, 256, 512)
    # stochastic depth rate of the last block, rising linearly from 0 at the first
    drop_path: Annotated[float, DropProbability] = 0.05
    # number of passes over the training images
    epochs: Annotated[float, Positive] = 12
    # number of images per step
    batch_size: Annotated[int, Positive] = 8
    # gradient accumulation: number of parts of a batch that run one after another; batch norm of the "xcit" neck sees
    # one part at a time
    accumulate: Annotated[int, Positive] = 1
    # peak learning rate of AdamW
    lr: Annotated[float, Positive] = 5e-5
    # weight decay, on all parameters but position embeddings, class token and norms of the backbone
    weight_decay: Annotated[float, NonNegative] = 0.05
    # layer-wise decay: factor on the learning rate of each block, relative to the block above it
    layer_decay: Annotated[float, Fraction] = 1.0
    # number of steps of linear warm-up of the learning rate
    warmup_steps: Annotated[int, NonNegative] = 1000
    # learning rate at the first step, as a fraction of the peak
    warmup_start: Annotated[float, UnitInterval] = 0.001
    # epochs after which the learning rate is divided by ten
    decay_epochs: Annotated[tuple[float, ...], Positive, Ascending] = (8, 11)
    # largest global gradient norm, a larger one is scaled down; 0: no clipping
    clip_norm: Annotated[float, NonNegative] = 0.0
    # probability of a horizontal flip in training
    hflip_prob: Annotated[float, Probability] = 0.5
    # augmentation of training images: a random short side, half of them cropped before ("multi_scale"), a random scale
    # and a crop ("large_scale_jitter"), or the test size ("none")
    augmentation: Literal["multi_scale", "large_scale_jitter", "none"] = "multi_scale"
    # short sides in pixels that "multi_scale" chooses from
    short_sides: Annotated[tuple[int, ...], NonEmpty, Positive] = tuple(range(480, 801, 32))
    # short sides in pixels that "multi_scale" chooses from before a crop
    crop_short_sides: Annotated[tuple[int, ...], NonEmpty, Positive] = (400, 500, 600)
    # smallest and largest side of a crop of "multi_scale" in pixels, drawn for each side by itself
    crop_sides: Annotated[tuple[int, int], Positive, Ascending] = (384, 600)
    # take the boxes of objects that a crop of "large_scale_jitter" cuts from what is left of their masks, and drop
    # objects without a pixel, instead of clipping the boxes
    recompute_boxes: bool = False
    # random scale of "large_scale_jitter" relative to the test size, uniform between the two numbers
    jitter: Annotated[tuple[float, float], Positive, Ascending] = (0.1, 2.0)
    # short side of test images in pixels
    image_size: Annotated[int, Positive] = 800
    # largest long side of test and training images in pixels
    long_side: Annotated[int, Positive] = 1333
    # side in pixels of the square that every image is padded to, in training and test; None: the largest of the batch
    square_pad: Annotated[int | None, Positive] = None
    # number of proposals per level before non-maximum suppression in training
    rpn_pre_nms_top_n_train: Annotated[int, Positive] = 2000
    # number of proposals per level before non-maximum suppression in the test
    rpn_pre_nms_top_n_test: Annotated[int, Positive] = 1000
    # number of proposals per image after non-maximum suppression in training
    rpn_post_nms_top_n_train: Annotated[int, Positive] = 1000
    # number of proposals per image after non-maximum suppression in the test
    rpn_post_nms_top_n_test: Annotated[int, Positive] = 1000
    # IoU threshold of non-maximum suppression of proposals
    rpn_nms: Annotated[float, UnitInterval] = 0.7
    # number of anchors per image in the loss of the region proposal network
    rpn_batch_size_per_image: Annotated[int, Positive] = 256
    # number of regions per image in the loss of the box head
    box_batch_size_per_image: Annotated[int, Positive] = 512
    # smallest score of a detection
    score_threshold: Annotated[float, UnitInterval] = 0.05
    # IoU threshold of non-maximum suppression of detections of one class
    nms: Annotated[float, UnitInterval] = 0.5
    # largest number of detections per image
    max_boxes: Annotated[int, Positive] = 100
    # training precision: float32, bf16, or auto (bf16 on a GPU that has it); the test is in float32
    precision: Literal["float32", "bf16", "auto"] = "auto"
    # activation checkpointing of the backbone's blocks: less memory, a third slower, same results
    recompute: bool = field(default=False, compare=False)
    # seed of the heads' initialization, the order of the images and their augmentation
    seed: Annotated[int, Seed] = 0
    # largest number of images of each split, spread evenly over it; None: all
    max_images: Annotated[int | None, Positive] = None

    @property
    def differs(self) -> tuple[str, ...]:
        """Departures from the program of the presets; result.json lists them beside the numbers."""
        if self.neck == "simple":
            return (
                "attention is global in all blocks, where ViTDet's is within windows in most",
                "positions are the backbone's own, without ViTDet's relative ones",
                "boxes that no crop cuts stay as annotated, where detectron2 takes them from the polygons",
                "an object without a pixel left after scaling is dropped",
            )
        return (
            f"{self.batch_size} images per step are a reading: the configuration has 1 per GPU and no number of GPUs",
            "a batch is padded to one size, where mmdetection pads the images of each GPU by themselves",
            "every object keeps its best anchor at any IoU, where mmdetection asks for 0.3",
            "images are antialiased when they are shrunk, where OpenCV does not",
        )

    def __post_init__(self):
        super().__post_init__()
        self.require(
            self.long_side >= self.image_size,
            "long_side",
            f"it must be at least image-size, the short side, which is {self.image_size}",
        )
        self.require(
            self.square_pad is None or self.square_pad >= self.long_side,
            "square_pad",
            f"it must be at least long-side, which is {self.long_side}",
        )
        self.require(
            self.accumulate <= self.batch_size,
            "accumulate",
            f"it must be at most batch-size, which is {self.batch_size}: a part has at least one image",
        )


# SelfPatch's configuration has one image per GPU, half of the learning rate and twice the warm-up of XCiT's, which it
# is derived from and which trains with two images on each of eight GPUs. The number of GPUs is not written down: 8
# images per step are the likely reading.
PAPER_1X = MaskRCNN()
# ViTDet's training of a ViT-B on COCO, 100 epochs: detectron2 projects/ViTDet/configs/COCO/mask_rcnn_vitdet_b_100ep.py.
# Differs: attention is global in all blocks, and positions are those of the backbone, as the model brings them along.
VITDET = MaskRCNN(
    neck="simple",
    head_norm="layer_norm",
    drop_path=0.1,
    epochs=100,
    batch_size=64,
    lr=1e-4,
    weight_decay=0.1,
    layer_decay=0.7,
    warmup_steps=250,
    decay_epochs=(88.889, 96.296),  # 163,889 and 177,546 of 184,375 steps
    augmentation="large_scale_jitter",
    recompute_boxes=True,
    image_size=1024,
    long_side=1024,
    square_pad=1024,
)

PRESETS = {
    "paper-1x": PAPER_1X,
    # the other reading: sixteen GPUs, or two images on each of eight as XCiT
    "paper-1x-batch-16": dataclasses.replace(PAPER_1X, batch_size=16),
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
