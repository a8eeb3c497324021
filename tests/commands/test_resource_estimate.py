"""The batch that fits, the estimate before a run, and what is said when it waits for data."""

from dataclasses import replace

import pytest
import torch

from selfpatch.commands.pretrain import pretrain
from selfpatch.commands.run_setup import resource_estimate as advice
from selfpatch.config import EfficiencyConfig
from selfpatch.config.io import read_yaml
from selfpatch.data.loading.sampler import EpochSampler
from selfpatch.demo.scenes import write_scenes
from selfpatch.pretraining import estimate as estimate_module
from selfpatch.pretraining.estimate import Need, estimate_memory, largest_batch, time_step
from selfpatch.pretraining.student_teacher import apply_efficiency
from selfpatch.pretraining.train_state import TrainState
from selfpatch.pretraining.train_step import PretrainTask, build_optimizer, build_schedules
from tests.small_models import tiny_config, tiny_student_teacher

CPU = torch.device("cpu")


@pytest.mark.slow
def test_counting_sees_what_changes_memory_and_leaves_no_trace():
    config = tiny_config()
    student_teacher = tiny_student_teacher(config)
    before = {name: value.clone() for name, value in student_teacher.state_dict().items()}
    random_state = torch.get_rng_state()
    need = estimate_memory(student_teacher, config, CPU)
    assert time_step(student_teacher, config, CPU, num_images=2).per_image > 0
    assert torch.equal(random_state, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in student_teacher.state_dict().items())
    assert all(p.grad is None for p in student_teacher.parameters())
    assert not any(term.branch.distillation._accumulated for term in student_teacher.objectives.values())
    weights = sum(p.nbytes for p in student_teacher.parameters())
    trained = sum(p.nbytes for p in student_teacher.parameters() if p.requires_grad)
    assert need.fixed_bytes > weights + 2 * trained
    # Two blocks of 32 channels hold their inputs at least, and far less than a hundred times that.
    crops = config.crops
    tokens = 2 * (crops.global_size // 8) ** 2 + crops.num_local * (crops.local_size // 8) ** 2
    block_inputs = 4 * 32 * 2 * tokens
    assert 5 * block_inputs < need.bytes_per_image < 100 * block_inputs
    for checkpointing, share in (("selective", 0.85), ("full", 0.8)):
        apply_efficiency(student_teacher, EfficiencyConfig(activation_checkpointing=checkpointing))
        assert estimate_memory(student_teacher, config, CPU).bytes_per_image < share * need.bytes_per_image
    fewer = replace(config, crops=replace(config.crops, num_local=1))
    assert estimate_memory(tiny_student_teacher(fewer), fewer, CPU).bytes_per_image < need.bytes_per_image


@pytest.mark.parametrize(
    ("fixed", "per_image", "num_images", "steps"),
    [(0.1, 0.01, 64, [2, 2, 16]), (0.001, 0.001, 64, [2, 2, 32]), (0.1, 0.01, 8, [2, 2, 8]), (0.0, 0.5, 64, [2, 2])],
)
def test_time_has_a_part_that_does_not_grow_with_the_images(fixed, per_image, num_images, steps, monkeypatch):
    """A step of 2 images of a small network, taken for all, said four times too long."""
    clock, seen = [0.0], []

    def step(student_teacher, config, count, device):
        seen.append(count)
        clock[0] += fixed + per_image * count + (5.0 if len(seen) == 1 else 0.0)

    monkeypatch.setattr(estimate_module, "_step", step)
    monkeypatch.setattr(estimate_module.time, "perf_counter", lambda: clock[0])
    config = tiny_config()
    found = time_step(tiny_student_teacher(config), config, CPU, num_images=num_images)
    assert seen == steps
    assert found.seconds(64) == pytest.approx(fixed + 64 * per_image)


@pytest.mark.slow
@pytest.mark.parametrize("switches", [dict(view="recolored"), dict(view="other"), dict(layer=0)])
def test_what_objectives_need_beside_crops_is_counted(switches):
    config = tiny_config()
    plain = replace(config.objectives.selfpatch, crops="global")
    needs = {}
    for name, selfpatch in (("plain", plain), ("more", replace(plain, **switches))):
        changed = replace(config, objectives=replace(config.objectives, selfpatch=selfpatch))
        student_teacher = tiny_student_teacher(changed)
        needs[name] = estimate_memory(student_teacher, changed, CPU).bytes_per_image
        assert time_step(student_teacher, changed, CPU, num_images=2).per_image > 0
    assert needs["plain"] <= needs["more"] < 2 * needs["plain"]


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("available", [2e9, 5e9, 1e12])
def test_the_largest_batch_leaves_a_fifth_free(available, accumulate):
    need = Need(fixed_bytes=1e9, bytes_per_image=1e7)
    batch_size = largest_batch(need, available, num_images=10_000, accumulate=accumulate)
    assert batch_size % accumulate == 0
    assert need.bytes(batch_size / accumulate) <= 0.8 * available
    assert need.bytes(2 * batch_size / accumulate) > 0.8 * available or batch_size > 512
    assert largest_batch(need, available, num_images=40) <= 10


def test_nothing_fits():
    with pytest.raises(
        ValueError, match=r"not one image per step fits into memory: 1.0 GB .* efficiency.activation-checkpointing"
    ):
        largest_batch(Need(2**30, 2**20), 2**30, num_images=100)


@pytest.fixture
def images(tmp_path):
    write_scenes(tmp_path / "scenes", num_unlabeled=19, num_train=1, num_val=1, size=48, seed=0)
    return tmp_path / "scenes" / "images"


@pytest.mark.slow
def test_auto_is_chosen_once_a_run(images, tmp_path, capsys, monkeypatch):
    """The number is written down, the learning rate follows it, and the same command goes on with it."""
    config = replace(tiny_config(), optim=replace(tiny_config().optim, batch_size="auto", steps=3))
    settings = {"efficiency.num_workers": 0}
    pretrain(images, tmp_path / "run", config=config, settings=settings | {"run.stop_at_step": 1})
    assert "optim.batch-size 4:" in capsys.readouterr().out  # four batches of 19 images
    assert read_yaml(tmp_path / "run" / "config.yaml").optim.batch_size == 4
    monkeypatch.setattr(advice, "available_memory", lambda device: 0)
    assert pretrain(images, tmp_path / "run", config=config, settings=settings).steps_done == 3
    assert "optim.batch-size 4: as this run began" in capsys.readouterr().out


@pytest.mark.slow
def test_the_estimate_says_how_it_was_made_and_warns(monkeypatch):
    config = tiny_config()
    text = advice.estimate(tiny_student_teacher(config), config, 1000, CPU)
    assert "GB of memory (counted:" in text
    assert "for 1000 steps (from steps of few images" in text
    assert "warning" not in text
    monkeypatch.setattr(advice, "available_memory", lambda device: 1000)
    assert "--optim.batch-size auto" in advice.estimate(tiny_student_teacher(config), config, 1000, CPU)


def test_waiting_is_said_once_and_not_for_starting_workers(monkeypatch):
    monkeypatch.setattr(advice, "num_cores", lambda: 8)
    config = tiny_config(efficiency=EfficiencyConfig(num_workers=2))
    student_teacher = tiny_student_teacher(config)
    task = PretrainTask(
        TrainState(student_teacher, build_optimizer(student_teacher)),
        config,
        schedules=build_schedules(config.optim, config.teacher, num_steps=8, steps_per_epoch=4),
        sampler=EpochSampler(16, 4, seed=0),
        device=CPU,
        record_bad_images=len,
        data_wait_hint=advice.data_wait_hint(config, CPU),
    )
    notes = [task.log_message({"data_wait": share}, last=False) for share in (0.9, 0.1, 0.3, 0.5)]
    assert [note is not None for note in notes] == [False, False, True, False]
    assert notes[2].startswith("30% of the time steps wait for data")
    assert "--efficiency.num-workers 8" in notes[2]
    assert "--efficiency.color-augmentation" not in notes[2]
    assert "--efficiency.color-augmentation device" in advice.data_wait_hint(
        replace(config, efficiency=EfficiencyConfig(color_augmentation="worker")), torch.device("cuda")
    )
