"""Every recipe's method at the size of a toy, on every family of backbones, with and without SelfPatch."""

from dataclasses import replace
from functools import partial
from typing import NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor

from selfpatch.backbones.backbone import Backbone
from selfpatch.backbones.build import build_backbone, create_timm
from selfpatch.config import IMAGENET_MEAN, IMAGENET_STD, BackboneConfig, PretrainConfig
from selfpatch.config.objectives.objective import ObjectiveConfig
from selfpatch.objectives.self_distillation import SelfDistillation
from selfpatch.pretraining.masks import draw_masks
from selfpatch.pretraining.student_teacher import StudentTeacher, build_student_teacher
from selfpatch.pretraining.train_state import TrainState
from selfpatch.pretraining.train_step import accumulate_gradients, apply_gradients, build_optimizer, build_schedules
from selfpatch.pretraining.views import Views
from selfpatch.recipes import add_objectives, find_recipe
from selfpatch.training.precision import autocast_for

# A method is a row: the recipe that runs it.
METHODS = {
    "dino": "dino",
    "ibot": "ibot",
    "moco-v3": "moco-v3",
    "moby": "moby",
    "dinov2": "dinov2",
    "neco": "dino-neco-small",
}
WITH = {"alone": (), "+ selfpatch": ("selfpatch",)}
BACKBONES = {
    "plain ViT": BackboneConfig(name="vit_tiny_patch16_224"),
    "class token and registers": BackboneConfig(name="vit_small_patch14_reg4_dinov2", class_token=True),
    "RoPE": BackboneConfig(name="vit_small_patch16_dinov3"),
    "Swin": BackboneConfig(name="swin_tiny_patch4_window7_224"),
}
NUM_IMAGES, NUM_STEPS = 4, 30
# Of the toy Swin: two stages of two blocks, 4 x 4 windows on 8 x 8 and 4 x 4 places.
SMALL_SWIN = {"depths": (1, 2), "num_heads": (2, 4), "window_size": 4}


class Method(NamedTuple):
    """One cell of the table."""

    method: str
    added: str
    backbone: str


CELLS = [Method(method, added, backbone) for method in METHODS for added in WITH for backbone in BACKBONES]


def small_config(cell: Method) -> PretrainConfig:
    """The method of a recipe as it is, with small networks and crops, and a rate of learning for 30 steps."""
    config = find_recipe(METHODS[cell.method])
    family = BACKBONES[cell.backbone]
    size = {"embed_dim": 24} if cell.backbone == "Swin" else {"embed_dim": 48, "depth": 2, "num_heads": 3}
    config = replace(config, backbone=replace(family, **size, drop_path=config.backbone.drop_path))
    config = add_objectives(config, *WITH[cell.added])
    patch_size = 8 if cell.backbone == "Swin" else _patch_size(family)
    return replace(
        config,
        aggregator=config.aggregator and replace(config.aggregator, num_blocks=1),
        crops=replace(
            config.crops,
            global_size=4 * patch_size,
            local_size=3 * patch_size,
            # Two resolutions on one family: they take half of the time again.
            num_local=min(config.crops.num_local, int(cell.backbone == "plain ViT")),
        ),
        objectives=replace(
            config.objectives, **{name: small_objective(o) for name, o in config.objectives.given().items()}
        ),
        teacher=replace(config.teacher, momentum=config.teacher.momentum or 0.99),
        optim=replace(
            config.optim, batch_size=NUM_IMAGES, lr=1e-3, lr_scaling="none", steps=NUM_STEPS, warmup_epochs=0
        ),
    )


def small_objective(objective: ObjectiveConfig) -> ObjectiveConfig:
    """The same with narrow heads, and masks on every crop, so that four images have some."""
    small = {
        "num_prototypes": 48,
        "hidden_dim": 32,
        "bottleneck_dim": 16,
        "output_dim": 16,
        "queue_size": 24,
        "overlap_size": 3,
    }
    given = {name: value for name, value in small.items() if hasattr(objective, name)}
    if getattr(objective, "head", None):
        head = {name: value for name, value in small.items() if hasattr(objective.head, name)}
        given["head"] = replace(objective.head, **head)
    if getattr(objective, "masks", None):
        given["masks"] = replace(objective.masks, ratio=(0.3, 0.5), prob=1.0)
    return replace(objective, **given)


def _patch_size(family: BackboneConfig) -> int:
    assert family.name is not None
    return int(family.name.split("patch")[1][:2])


def small_backbone(config: PretrainConfig) -> Backbone:
    side = config.crops.global_size
    assert isinstance(side, int) and config.backbone.name is not None
    more = SMALL_SWIN if config.backbone.name.startswith("swin") else {}
    with patch("selfpatch.backbones.build.create_timm", partial(create_timm, **more)):
        backbone = build_backbone(config.backbone, (side, side), mean=IMAGENET_MEAN, std=IMAGENET_STD)
    for name, parameter in backbone.named_parameters():
        if "gamma" in name:  # LayerScale starts at 1e-5: in 30 steps no block would count
            torch.nn.init.ones_(parameter)
    return backbone


class Trainer:
    """A method on one batch, which it sees at every step: what `selfpatch pretrain` makes of a step, without data."""

    def __init__(self, config: PretrainConfig):
        torch.manual_seed(0)
        self.config = config
        student_teacher = build_student_teacher(small_backbone(config), config, steps_per_epoch=NUM_STEPS)
        self.state = TrainState(student_teacher, build_optimizer(student_teacher))
        self._schedules = build_schedules(config.optim, config.teacher, num_steps=NUM_STEPS, steps_per_epoch=NUM_STEPS)
        self.views = views_of(config, student_teacher)
        self._move_centers()

    @torch.no_grad()
    def _move_centers(self) -> None:
        """To where a while on this batch would move them: a loss that begins uncentered rises at first."""
        distillations = [module for module in self.student_teacher.modules() if isinstance(module, SelfDistillation)]
        usual = [distillation.center_momentum for distillation in distillations]
        for distillation in distillations:
            distillation.center_momentum = 0.0
        self.student_teacher.train()(self.views, 0)
        self.student_teacher.commit(1.0)  # the teachers stay
        for distillation, momentum in zip(distillations, usual, strict=True):
            distillation.center_momentum = momentum

    @property
    def student_teacher(self) -> StudentTeacher:
        return self.state.student_teacher

    def gradients(self, step: int, precision: str = "float32") -> Tensor:
        """Add the gradients of a step; its loss."""
        torch.manual_seed(step)  # as the loop does: stochastic depth
        self.student_teacher.train()
        autocast = autocast_for(precision, torch.device("cpu"))
        return accumulate_gradients(self.student_teacher, [self.views], step, autocast)["loss"]

    def train(self, until: int) -> list[float]:
        """Steps from where the state is; their losses."""
        losses = []
        while self.state.step < until:
            loss = self.gradients(self.state.step)
            assert apply_gradients(
                self.student_teacher,
                self.state.optimizer,
                loss,
                self.state.step,
                schedules=self._schedules,
                optim=self.config.optim,
            )
            self.state.step += 1
            losses.append(loss.item())
        return losses


def views_of(config: PretrainConfig, student_teacher: StudentTeacher) -> Views:
    """Crops of four images that differ, each crop a noisy version of its image, so that there is something to learn."""
    generator, crops = torch.Generator().manual_seed(0), config.crops
    grid_size = student_teacher.student.backbone.grid_size((crops.global_size,) * 2)
    masks = None
    if student_teacher.masks is not None:
        masks = draw_masks(student_teacher.masks, range(NUM_IMAGES), seed=0, step=0, num_crops=2, grid_size=grid_size)

    def crops_of(count: int, side: int) -> Tensor | None:
        if not count:
            return None
        images = torch.randn(NUM_IMAGES, 3, 4, 4, generator=generator)
        images = torch.nn.functional.interpolate(images, size=(side, side), mode="bilinear")
        return images + 0.3 * torch.randn(count, *images.shape, generator=generator)

    global_crops = crops_of(crops.num_global, crops.global_size)
    assert global_crops is not None
    local_crops = crops_of(crops.num_local, crops.local_size)
    boxes = [None if part is None else overlapping_boxes(len(part)) for part in (global_crops, local_crops)]
    return Views(global_crops, local_crops, masks, None, *boxes)


def overlapping_boxes(num_crops: int) -> Tensor:
    """Left, top, right and bottom of every crop of every image, each crop a fifth further than the one before."""
    corner = 20.0 * torch.arange(num_crops)[:, None, None].expand(-1, NUM_IMAGES, 2)
    return torch.cat([corner, corner + 100], dim=-1)
