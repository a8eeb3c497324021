"""iBOT as a run: one head for two objectives, saved once, and masks that a run which goes on draws again."""

import pytest
import torch
from safetensors.torch import load_file

from selfpatch.backbones.pretrained import load_backbone
from selfpatch.commands.pretrain import pretrain
from selfpatch.config import BackboneConfig, DINOConfig, ObjectivesConfig, PretrainConfig, SelfDistillationConfig
from selfpatch.config.masks import MaskConfig
from selfpatch.config.objectives.ibot import IBOTConfig
from selfpatch.demo.scenes import write_scenes
from selfpatch.output import checkpoint
from selfpatch.pretraining.train_state import TrainState
from selfpatch.pretraining.train_step import build_optimizer
from selfpatch.pretraining.views import Views
from tests.small_models import HEAD, random_crops, tiny_config, tiny_student_teacher

MASKS = torch.arange(2 * 4 * 16).reshape(2, 4, 16) % 3 == 0


def ibot_config(**changes) -> PretrainConfig:
    """DINO + iBOT with one head and the backbone's class token and norm, as in the recipe `ibot`."""
    return tiny_config(
        backbone=BackboneConfig(
            name="vit_tiny_patch16_224", patch_size=8, embed_dim=32, depth=2, num_heads=2, drop_path=0.0
        ),
        aggregator=None,
        objectives=ObjectivesConfig(
            dino=DINOConfig(head=HEAD),
            ibot=IBOTConfig(
                **dict(head=None, distillation=SelfDistillationConfig(), masks=MaskConfig(prob=1.0)) | changes
            ),
        ),
    )


def train(state: TrainState, config: PretrainConfig, num_steps: int) -> None:
    for _ in range(num_steps):
        loss, _ = state.student_teacher(Views(*random_crops(config, seed=state.step), MASKS), state.step)
        loss.backward()
        for group in state.optimizer.param_groups:
            group["lr"] = 1e-3
        state.optimizer.step()
        state.optimizer.zero_grad()
        state.student_teacher.commit(0.9)
        state.step += 1


def fresh(config: PretrainConfig, *, seed: int = 0) -> TrainState:
    student_teacher = tiny_student_teacher(config, seed=seed)
    return TrainState(student_teacher, build_optimizer(student_teacher))


def test_a_shared_head_is_one_module_with_two_centers():
    student_teacher = tiny_student_teacher(ibot_config())
    dino, ibot = (student_teacher.objectives[name].branch for name in ("dino", "ibot"))
    assert ibot.head is dino.head and ibot.teacher_head is dino.teacher_head
    assert ibot.distillation is not dino.distillation
    names = student_teacher.state_dict().keys()
    assert "objectives.dino.branch.head.mlp.0.weight" in names
    assert [name for name in names if name.startswith("objectives.ibot")] == [
        "objectives.ibot.branch.distillation.center"
    ]
    assert len(student_teacher.ema_pairs()) == 2

    train(state := TrainState(student_teacher, build_optimizer(student_teacher)), ibot_config(), 1)
    assert state.step == 1
    assert not torch.equal(dino.distillation.center, ibot.distillation.center)


def test_gradients_of_both_objectives_meet_in_a_shared_head():
    config = ibot_config()
    views = Views(*random_crops(config), MASKS)

    def gradient(**weights: float) -> torch.Tensor:
        student_teacher = tiny_student_teacher(config)
        for name, weight in weights.items():
            student_teacher.objectives[name].weight = weight
        student_teacher(views, 0)[0].backward()
        return student_teacher.objectives["dino"].branch.head.mlp[0].weight.grad

    both, image_level, patch_level = gradient(), gradient(ibot=0.0), gradient(dino=0.0)
    assert patch_level.abs().sum() > 0
    torch.testing.assert_close(both, image_level + patch_level)


@pytest.mark.parametrize("head", [None, HEAD], ids=["one head", "two heads"])
def test_saved_and_loaded_it_goes_on_as_if_nothing_had_happened(head, tmp_path):
    config = ibot_config(head=head)
    unbroken, before, after = fresh(config), fresh(config), fresh(config, seed=1)
    train(unbroken, config, 4)
    train(before, config, 2)
    saved = checkpoint.save(
        tmp_path, 2, before.tensors(), before.state() | {"method": {}, "images": "", "num_images": 0}, keep=1
    )
    names = load_file(saved / "model.safetensors").keys()
    assert any(name.startswith("objectives.ibot.branch.head") for name in names) is (head is not None)
    after.load(checkpoint.load(saved))
    train(after, config, 2)
    ours, theirs = after.tensors(), unbroken.tensors()
    for file in ours:
        assert ours[file].keys() == theirs[file].keys()
        assert all(torch.equal(ours[file][name], theirs[file][name]) for name in ours[file])


@pytest.mark.slow
def test_a_run_with_masks_goes_on_bit_for_bit_and_its_backbone_loads(tmp_path):
    write_scenes(tmp_path / "scenes", num_unlabeled=9, num_train=1, num_val=1, size=48, seed=0)
    settings = {"optim.steps": 4, "efficiency.num_workers": 0, "evaluate.data": None}

    def run(out: str, **changes):
        return pretrain(
            tmp_path / "scenes" / "images", tmp_path / out, config=ibot_config(), settings=settings | changes
        )

    run("unbroken")
    run("run", **{"run.stop_at_step": 2})
    assert run("run").steps_done == 4
    (ours, _), (theirs, _) = (checkpoint.load_latest(tmp_path / out / "checkpoints") for out in ("run", "unbroken"))
    assert all(torch.equal(ours.tensors["model"][name], tensor) for name, tensor in theirs.tensors["model"].items())
    assert ours.tensors["model"]["student.backbone.mask_token"].abs().sum() > 0, "it is trained"
    backbone = load_backbone(tmp_path / "run")
    assert backbone.has_cls_token and backbone.mask_token is None


def test_masks_change_what_the_student_sees_and_not_what_the_teacher_does():
    config = ibot_config()
    student_teacher = tiny_student_teacher(config).eval()
    with torch.no_grad():
        student_teacher.student.backbone.mask_token.fill_(3.0)
    views = Views(*random_crops(config), MASKS)
    seen = {}
    objective = student_teacher.objectives["ibot"]
    objective.register_forward_pre_hook(lambda _, inputs: seen.update(student=inputs[0], teacher=inputs[1]))
    student_teacher(views, 0)
    assert torch.equal(seen["student"].masks, MASKS.flatten(0, 1)) and seen["teacher"].masks is None
    masked = seen["student"].global_crops, seen["teacher"].global_crops
    student_teacher(views._replace(masks=None), 0)
    assert not torch.allclose(masked[0].image_token, seen["student"].global_crops.image_token)
    assert torch.equal(masked[1].image_token, seen["teacher"].global_crops.image_token)
