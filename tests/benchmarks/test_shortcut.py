"""What tokens and prototypes tell about places: against plain counting, and on data of which the answer is known."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks.shortcut import (
    POSITIONS,
    PlaceInformation,
    center_crops,
    cluster,
    encode,
    load_model,
    measure,
    positions,
    table,
    targets_of,
    variance_shares,
)
from selfpatch.commands.pretrain import pretrain
from selfpatch.demo.scenes import write_scenes
from tests.reference.plain_place import plain_information, plain_loss_share, plain_variance_shares
from tests.small_models import tiny_config, tiny_student_teacher

B, N, D, K = 60, 16, 8, 5


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shares(targets: torch.Tensor, parts: int = 1):
    information = PlaceInformation()
    for part in targets.chunk(parts):
        information.add(part)
    return information.shares()


def one_hot(assignment: torch.Tensor) -> torch.Tensor:
    return F.one_hot(assignment, K).float()


def test_variance_equals_plain_counting():
    tokens = torch.randn(7, 5, 3, generator=generator())
    tokens = tokens + torch.randn(5, 3, generator=generator(1)) + 2 * torch.randn(7, 1, 3, generator=generator(2))
    found = variance_shares(tokens)
    np.testing.assert_allclose(found[:3], plain_variance_shares(tokens.double().numpy()), rtol=1e-6)
    assert sum(found[:3]) == pytest.approx(1)


def test_variance_of_pure_functions():
    place, image = torch.randn(1, N, D, generator=generator()), torch.randn(B, 1, D, generator=generator())
    assert variance_shares(place.expand(B, N, D))[:3] == pytest.approx((1, 0, 0), abs=1e-9)
    assert variance_shares(image.expand(B, N, D))[:3] == pytest.approx((0, 1, 0), abs=1e-9)
    assert variance_shares(torch.ones(B, N, D))[:3] == (0, 0, 0)


def test_variance_of_independent_tokens_is_what_chance_gives():
    found = variance_shares(torch.randn(200, N, 64, generator=generator()))
    assert found.place == pytest.approx(found.place_by_chance, rel=0.2)
    assert found.image == pytest.approx(found.image_by_chance, rel=0.2)
    assert found.place_by_chance == pytest.approx(15 / 3199)


@pytest.mark.parametrize("parts", [1, 4])
def test_information_equals_plain_counting(parts):
    assignment = torch.randint(K, (B, N), generator=generator())
    assignment[:, :4] = assignment[:, :4].clamp(max=1)  # some places are told by their prototypes
    entropy, information = plain_information(assignment.numpy())
    found = shares(one_hot(assignment), parts)
    assert found.entropy == pytest.approx(entropy)
    assert found.information == pytest.approx(information)
    assert found.share_of_entropy == pytest.approx(information / entropy)
    assert found.share_of_loss == pytest.approx(found.share_of_entropy)  # hard targets: all entropy can be won


def test_loss_share_equals_cross_entropies():
    targets = (3 * torch.randn(20, N, K, generator=generator()) + torch.randn(N, K, generator=generator(1))).softmax(-1)
    assert shares(targets).share_of_loss == pytest.approx(plain_loss_share(targets.numpy()), rel=1e-5)


def test_places_alone_explain_everything():
    found = shares(one_hot((torch.arange(N) % K).expand(B, N)))
    assert found.share_of_entropy == pytest.approx(1)
    assert found.share_of_entropy_adjusted == pytest.approx(1)
    assert found.share_of_loss_adjusted == pytest.approx(1)
    assert found.share_of_entropy_shuffled < 0.1


def test_chance_is_taken_off():
    """Few images: the plain estimate says a fifth, and there is nothing. Miller's bias is about (K - 1)(N - 1) / 2BN."""
    found = shares(one_hot(torch.randint(K, (6, N), generator=generator())))
    assert found.share_of_entropy > 0.15
    assert abs(found.share_of_entropy_adjusted) < 0.05
    found = shares(one_hot(torch.randint(K, (300, N), generator=generator())))
    assert found.information_shuffled == pytest.approx((K - 1) * (N - 1) / (2 * 300 * N), rel=0.25)


def test_images_alone_tell_nothing_about_places():
    found = shares(one_hot(torch.randint(K, (B, 1), generator=generator()).expand(B, N)))
    assert found.share_of_entropy == pytest.approx(0, abs=1e-9)
    assert found.share_of_entropy_adjusted == pytest.approx(0, abs=1e-9)


def test_one_prototype_for_all_shares_nothing():
    found = shares(one_hot(torch.zeros(B, N, dtype=torch.long)))
    assert found[3:] == (0,) * 6


def test_clusters_find_what_is_apart():
    centers = F.normalize(torch.randn(K, D, generator=generator()), dim=-1)
    truth = torch.randint(K, (B, N), generator=generator(1))
    found = cluster(3 * centers[truth] + 0.01 * torch.randn(B, N, D, generator=generator(2)), K, seed=0)
    pairs = set(zip(truth.flatten().tolist(), found.flatten().tolist(), strict=True))
    assert len(pairs) == K


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shortcut")
    write_scenes(folder, num_unlabeled=9, num_train=0, num_val=0, size=48, seed=0)
    settings = {"optim.steps": 2, "efficiency.num_workers": 0}
    pretrain(folder / "images", folder / "run", config=tiny_config(), settings=settings)
    return folder


def test_positions_are_changed_for_patches_alone_and_put_back():
    backbone = tiny_student_teacher(tiny_config()).teacher.export_backbone()
    images = torch.randn(1, 3, 32, 32, generator=generator()).expand(3, -1, -1, -1)
    with torch.no_grad():
        before = backbone(images).patch_tokens
        with positions(backbone, "shuffled", 3, generator()):
            shuffled = backbone(images).patch_tokens
        with positions(backbone, "zeroed", 3, generator()):
            zeroed = backbone(images[:, :, :8, :8].repeat(1, 1, 4, 4)).patch_tokens  # the same patch sixteen times
        after = backbone(images).patch_tokens
    assert torch.equal(before, after)
    assert not torch.allclose(shuffled[0], shuffled[1], atol=1e-3)
    torch.testing.assert_close(zeroed, zeroed[:, :1].expand_as(zeroed), rtol=0, atol=1e-5)


def test_targets_are_those_of_the_training_step(run):
    """The term's own cross-entropy with a student that is the teacher: with these targets it comes out the same."""
    model = load_model(run / "run", torch.device("cpu"))
    student_teacher, pixels = model.student_teacher, center_crops(run / "images", 32, 4)
    (tokens,) = encode(student_teacher.teacher.backbone, pixels, "kept", 4)
    targets = targets_of(student_teacher, tokens, model.step)
    term = student_teacher.named_objectives["selfpatch"]
    with torch.no_grad():
        loss, _ = term(
            encode_tokens(student_teacher.student, tokens), encode_tokens(student_teacher.teacher, tokens), model.step
        )
        logits = term.branch.head(student_teacher.student.aggregator.norm(tokens.patch_tokens))
        expected = -(targets * (logits / term.branch.distillation.student_temperature).log_softmax(-1)).sum(-1).mean()
    term.discard()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)


def encode_tokens(encoder, tokens):
    """As if the network had made these tokens of one global crop."""
    views = encoder.encode(torch.zeros(1, len(tokens.patch_tokens), 3, 32, 32), None)
    return views._replace(global_crops=views.global_crops._replace(tokens=tokens))


def test_all_figures_of_a_run_and_of_its_backbone(run, capsys):
    models = [load_model(path, torch.device("cpu")) for path in (run / "run", run / "run" / "backbone.safetensors")]
    pixels = center_crops(run / "images", 32, 8)
    results = [measure(model, pixels, batch_size=3, num_clusters=4) for model in models]
    assert results[0]["step"] == 2
    for mode in POSITIONS:
        assert "targets" in results[0][mode]
        assert "targets" not in results[1][mode]
        assert results[0][mode]["variance"] == pytest.approx(results[1][mode]["variance"], rel=1e-4)
    assert results[0]["kept"]["variance"]["place"] > results[0]["zeroed"]["variance"]["place"]
    assert table(results).row_count == 6
