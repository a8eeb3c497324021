"""Training steps of the authors' own program, replayed through our parts: converter, backbone, terms, optimizer, EMA.

Every training kit that `find_kits` knows of is checked.
"""

import contextlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from selfpatch.backbones.build import build_backbone
from selfpatch.config import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    AggregatorConfig,
    BackboneConfig,
    DINOConfig,
    HeadConfig,
    ObjectivesConfig,
    OptimConfig,
    PretrainConfig,
    SelfDistillationConfig,
    SelfPatchConfig,
    TeacherConfig,
)
from selfpatch.data.augmentation.normalize import normalize
from selfpatch.objectives.selfpatch import find_positives
from selfpatch.optim.optimizer import gradient_norms
from selfpatch.pretraining.student_teacher import StudentTeacher, build_student_teacher
from selfpatch.pretraining.train_step import accumulate_gradients, apply_gradients, build_optimizer, build_schedules
from selfpatch.pretraining.views import Views
from tests.parity.kits import ROOTS, find_kits
from tests.parity.original_selfpatch import convert_training_state

KITS = find_kits(
    "initial.safetensors", "crops.safetensors", "activations.safetensors", "expected.json", "final.safetensors"
)


@pytest.fixture(params=KITS, ids=lambda kit: kit.name, scope="module")
def kit(request) -> Path:
    return request.param


@pytest.fixture(scope="module")
def expected(kit) -> dict:
    return json.loads((kit / "expected.json").read_text())


@pytest.fixture
def crops(kit) -> dict[str, torch.Tensor]:
    return load_file(kit / "crops.safetensors")


@pytest.fixture(autouse=True)
def one_thread():
    """Sums in one order, whatever the machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_kits_are_found():
    assert KITS, f"no training kit below {ROOTS}"


def config_of(settings: dict) -> PretrainConfig:
    """The kit's settings under our names."""
    distillation = SelfDistillationConfig(
        student_temperature=settings["student_temp"],
        teacher_temperature=settings["teacher_temp"],
        warmup_teacher_temperature=settings["warmup_teacher_temp"],
        warmup_epochs=settings["warmup_teacher_temp_epochs"],
        center_momentum=settings["center_momentum"],
    )

    def head(num_prototypes: int, fix_prototype_norm: bool) -> HeadConfig:
        return HeadConfig(
            num_prototypes=num_prototypes,
            hidden_dim=settings["head_hidden_dim"],
            bottleneck_dim=settings["head_bottleneck_dim"],
            fix_prototype_norm=fix_prototype_norm,
            freeze_prototypes_epochs=settings["freeze_last_layer_epochs"],
        )

    fixed = settings["norm_last_layer"]
    return PretrainConfig(
        backbone=BackboneConfig(
            name="vit_small_patch16_224",
            patch_size=settings["patch_size"],
            embed_dim=settings["embed_dim"],
            depth=settings["depth"],
            num_heads=settings["num_heads"],
            class_token=False,
            final_norm=False,
            drop_path=settings["drop_path"],
            pos_embed_interpolation="offset",
        ),
        aggregator=AggregatorConfig(),
        objectives=ObjectivesConfig(
            dino=DINOConfig(head=head(settings["out_dim"], fixed), distillation=distillation, center_crops="all"),
            selfpatch=SelfPatchConfig(
                weight=settings["patch_loss_weight"],
                head=head(settings["out_dim_selfpatch"], fixed),
                distillation=distillation,
                num_positives=settings["k_num"],
                padding_mode="circular",
                crops="all",
            ),
        ),
        optim=OptimConfig(
            batch_size=settings["batch"],
            lr=settings["base_lr"],
            lr_scaling="none",
            min_lr=settings["min_lr"],
            epochs=settings["epochs"],
            warmup_epochs=settings["warmup_epochs"],
            weight_decay=settings["weight_decay"][0],
            weight_decay_end=settings["weight_decay"][1],
            clip_norm=settings["clip_grad"],
            clip_mode="parameter",
        ),
        teacher=TeacherConfig(momentum=settings["momentum_teacher"]),
    )


def build(kit: Path, expected: dict) -> tuple[StudentTeacher, PretrainConfig]:
    settings = expected["settings"]
    config = config_of(settings)
    backbone = build_backbone(
        config.backbone, (settings["img_size"], settings["img_size"]), mean=IMAGENET_MEAN, std=IMAGENET_STD
    )
    student_teacher = build_student_teacher(backbone, config, steps_per_epoch=settings["iterations_per_epoch"])
    student_teacher.load_state_dict(convert_training_state(load_file(kit / "initial.safetensors")), strict=True)
    return student_teacher, config


def views(
    crops: dict[str, torch.Tensor], step: int, config: PretrainConfig
) -> tuple[torch.Tensor, torch.Tensor | None]:
    images = [
        normalize(crops[f"step{step}.crop{j}"], *config.crops.normalization)
        for j in range(sum(name.startswith(f"step{step}.") for name in crops))
    ]
    return torch.stack(images[:2]), torch.stack(images[2:]) if len(images) > 2 else None


def our_name(original: str) -> str:
    (name,) = convert_training_state({f"student.{original}": torch.empty(0)})
    return name


def is_key_bias(name: str) -> bool:
    return name.endswith("attn.k.bias")


def test_teacher_activations(kit, expected, crops):
    """Tokens, positives, aggregates and logits of the teacher at step 0, global and local crops."""
    student_teacher, config = build(kit, expected)
    student_teacher.eval()
    activations = load_file(kit / "activations.safetensors")
    for name, images in zip(("global", "local"), views(crops, 0, config), strict=True):
        if images is None:
            continue
        with torch.no_grad():
            encoder = student_teacher.teacher
            tokens = encoder.backbone(images.flatten(0, 1))
            positives, _ = find_positives(tokens, config.objectives.selfpatch)
            aggregates = encoder.aggregator(tokens.patch_tokens, positives)
            image_token = encoder(images.flatten(0, 1)).image_token
            dino, selfpatch = student_teacher.objectives["dino"], student_teacher.objectives["selfpatch"]
            ours = {
                "patch_tokens": tokens.patch_tokens,
                "aggregated": torch.cat([image_token[:, None], aggregates], dim=1),
                "cls_logits": dino.branch.teacher_head(image_token)[:, None],
            }
            patch_logits = selfpatch.branch.teacher_head(aggregates)
        assert torch.equal(positives.int(), activations[f"teacher.positives.{name}"])
        for key, value in ours.items():
            torch.testing.assert_close(value, activations[f"teacher.{key}.{name}"], rtol=1e-5, atol=1e-5, msg=key)
        stored = activations[f"teacher.patch_logits.{name}"].float()  # float16: three digits
        torch.testing.assert_close(patch_logits, stored, rtol=1e-3, atol=1e-3)


def test_training_steps(kit, expected, crops):
    """Every step's schedules, losses and gradient norms; then the weights, teachers and centres at the end."""
    student_teacher, config = build(kit, expected)
    settings, steps = expected["settings"], expected["steps"]
    schedules = build_schedules(
        config.optim,
        config.teacher,
        num_steps=settings["epochs"] * settings["iterations_per_epoch"],
        steps_per_epoch=settings["iterations_per_epoch"],
    )
    for name, schedule in (("lr", schedules.lr), ("wd", schedules.weight_decay), ("momentum", schedules.momentum)):
        stored = expected[f"{name}_schedule"]
        assert [schedule(step) for step in range(len(stored))] == pytest.approx(stored, rel=1e-9, abs=1e-15)

    optimizer = build_optimizer(student_teacher)
    student_teacher.train()
    parameters = dict(student_teacher.named_parameters())
    for record in steps:
        step = record["iteration"]
        metrics = accumulate_gradients(
            student_teacher, [Views(*views(crops, step, config))], step, contextlib.nullcontext
        )
        assert metrics["loss"].item() == pytest.approx(record["loss"], rel=1e-5)
        assert metrics["dino/loss"].item() == pytest.approx(record["image_loss"], rel=1e-5)
        assert metrics["selfpatch/loss"].item() == pytest.approx(record["patch_loss"], rel=1e-5)
        distillation = student_teacher.objectives["dino"].branch.distillation
        assert distillation.teacher_temperature(step) == pytest.approx(record["teacher_temp"])
        for original, norm in record["grad_norms_before_clipping"].items():
            if not is_key_bias(original):
                ours = gradient_norms([parameters[our_name(original)]]).item()
                assert ours == pytest.approx(norm, rel=1e-3, abs=1e-6), original
        accepted = apply_gradients(
            student_teacher, optimizer, metrics["loss"], step, schedules=schedules, optim=config.optim
        )
        assert accepted

    final = convert_training_state(load_file(kit / "final.safetensors"))
    state = student_teacher.state_dict()
    assert final.keys() == state.keys()
    for name, value in final.items():
        ours = state[name]
        if is_key_bias(name):
            continue
        if name.endswith("attn.qkv.bias"):  # the keys' third has no gradient but rounding noise
            ours, value = (torch.cat([x.chunk(3)[0], x.chunk(3)[2]]) for x in (ours, value))
        torch.testing.assert_close(ours, value, rtol=0, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_kit_settings_are_all_used(expected):
    """A setting that we do not know would pass unnoticed."""
    known = {
        "embed_dim", "depth", "num_heads", "patch_size", "img_size", "k_num", "local_crops", "batch", "head_hidden_dim",
        "head_bottleneck_dim", "out_dim", "out_dim_selfpatch", "norm_last_layer", "warmup_teacher_temp", "teacher_temp",
        "warmup_teacher_temp_epochs", "epochs", "iterations_per_epoch", "base_lr", "min_lr", "warmup_epochs",
        "weight_decay", "momentum_teacher", "clip_grad", "freeze_last_layer_epochs", "patch_loss_weight", "student_temp",
        "center_momentum", "drop_path",
    }  # fmt: skip
    assert set(expected["settings"]) <= known
