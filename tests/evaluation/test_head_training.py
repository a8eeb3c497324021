"""The package's loop trains heads: what it minimises, stopping and going on, and whose training a folder holds."""

import json
import os
import signal

import numpy as np
import pytest
import torch
from torch import nn

from selfpatch.data.loading.sampler import sample_rng
from selfpatch.errors import UserError
from selfpatch.evaluation.fingerprint import fingerprint
from selfpatch.evaluation.head_training import StoppedError, train_head
from selfpatch.evaluation.task import EvalContext
from selfpatch.training.loop import DivergenceError

STEPS, BATCH_SIZE, NUM_SAMPLES = 12, 4, 5


def new_head() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1))


def sample(epoch: int, index: int) -> np.ndarray:
    return sample_rng(0, epoch, index).random(3).astype(np.float32) + index


def train(
    head: nn.Module, out, *, on_step=lambda count: None, lr=lambda step: 0.1 / (step + 1), samples=sample, **settings
) -> None:
    count = 0

    def losses(samples):
        nonlocal count
        on_step(count)
        count += 1
        x = torch.from_numpy(np.stack(samples))
        return {"fit": (head(x)[:, 0] - x.sum(dim=1)).square().mean(), "small": 1e-3 * head[0].weight.square().sum()}

    optimizer = torch.optim.AdamW(
        [{"params": head[0].parameters(), "lr_scale": 0.5}, {"params": [p for m in head[1:] for p in m.parameters()]}]
    )
    settings = {
        "num_samples": NUM_SAMPLES, "batch_size": BATCH_SIZE, "steps": STEPS, "clip_norm": 1.0, "seed": 0,
        "identity": {"task": "test"}, **settings,
    }  # fmt: skip
    train_head(head, optimizer, losses, samples, lr=lr, context=EvalContext(out), **settings)


def test_it_is_the_plain_loop(tmp_path):
    head = new_head()
    torch.manual_seed(7)
    expected_next = torch.rand(2)
    torch.manual_seed(7)
    train(head, tmp_path / "out")
    assert torch.equal(torch.rand(2), expected_next)  # random numbers are as they were
    assert not head.training

    plain = new_head().train()
    optimizer = torch.optim.AdamW(plain.parameters())
    groups = [
        {"params": list(plain[0].parameters()), "scale": 0.5},
        {"params": [p for m in plain[1:] for p in m.parameters()], "scale": 1.0},
    ]
    optimizer = torch.optim.AdamW(groups)
    order = [
        (epoch, int(index))
        for epoch in range(10)
        for index in np.random.default_rng([1, 0, epoch]).permutation(NUM_SAMPLES)
    ]
    for step in range(STEPS):
        torch.manual_seed(step * 4096)
        places = order[step * BATCH_SIZE : (step + 1) * BATCH_SIZE]
        x = torch.from_numpy(np.stack([sample(*place) for place in places]))
        loss = (plain(x)[:, 0] - x.sum(dim=1)).square().mean() + 1e-3 * plain[0].weight.square().sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 0.1 / (step + 1) * group["scale"]
        optimizer.step()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(head.state_dict()[name], value, rtol=1e-4, atol=1e-5)
    logged = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logged] == [1, 10, 12]
    assert logged[-1]["loss"] == pytest.approx(logged[-1]["fit/loss"] + logged[-1]["small/loss"], rel=1e-4)
    assert logged[-1]["lr"] == pytest.approx(0.1 / 12)


@pytest.mark.parametrize("step", [0, 4, 10])
def test_a_signal_saves_and_the_same_call_goes_on_bit_for_bit(step, tmp_path):
    unbroken, broken = new_head(), new_head()
    train(unbroken, tmp_path / "unbroken")
    with pytest.raises(StoppedError, match=f"stopped after {step + 1} of 12 steps") as stopped:
        train(broken, tmp_path / "out", on_step=lambda count: count == step and os.kill(os.getpid(), signal.SIGTERM))
    assert stopped.value.number == signal.SIGTERM
    again = new_head()
    train(again, tmp_path / "out")
    assert all(
        torch.equal(a, b) for a, b in zip(again.state_dict().values(), unbroken.state_dict().values(), strict=True)
    )


def test_a_finished_training_is_taken_as_it_is(tmp_path):
    first, second = new_head(), new_head()
    train(first, tmp_path)

    def never(count):
        raise AssertionError

    train(second, tmp_path, on_step=never)
    assert fingerprint(first) == fingerprint(second) and not second.training


def test_the_training_of_something_else_is_refused(tmp_path):
    train(new_head(), tmp_path)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=r"holds a head that was trained otherwise.*\n  task: test -> other"):
        train(new_head(), tmp_path, identity={"task": "other"})
    other = new_head()
    nn.init.zeros_(other[0].weight)
    with pytest.raises(ValueError, match="initial_weights"):
        train(other, tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_parts_of_a_batch_are_the_same_step(tmp_path):
    whole, parts = nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 1)), nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 1))
    parts.load_state_dict(whole.state_dict())
    train(whole, tmp_path / "whole", steps=1)
    train(parts, tmp_path / "parts", steps=1, accumulate=3)  # of 2, 2 and no images
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_step_after_step_that_is_not_finite_ends_it(tmp_path):
    head = new_head()
    nn.init.constant_(head[3].bias, float("nan"))
    with pytest.raises(DivergenceError, match="20 steps in a row.*these are not finite: loss, fit/loss.*warmup-steps"):
        train(head, tmp_path, steps=30)


def test_a_skipped_step_leaves_batch_norm_as_it_was(tmp_path):
    skipping, plain = new_head(), new_head()

    def poisoned(epoch, index):
        x = sample(epoch, index)
        return x * np.float32("inf") if (epoch, index) == first else x

    first = (0, int(np.random.default_rng([1, 0, 0]).permutation(NUM_SAMPLES)[0]))  # in the first step alone
    train(skipping, tmp_path / "skipping", steps=1, samples=poisoned)
    for name, value in plain.state_dict().items():
        assert torch.equal(skipping.state_dict()[name], value), name


def test_a_head_stored_under_former_names_of_settings_goes_on(tmp_path):
    former = {"protocol": {"taps": [2, 5], "flip_prob": 0.5}}
    now = {"protocol": {"out_indices": [2, 5], "hflip_prob": 0.5}}
    train(new_head(), tmp_path / "out", identity=former)
    train(new_head(), tmp_path / "out", identity=now)
    with pytest.raises(UserError, match="protocol.hflip_prob: 0.5 -> 0.4"):
        train(new_head(), tmp_path / "out", identity={"protocol": now["protocol"] | {"hflip_prob": 0.4}})
