"""What users get wrong with the tasks of clusters, classes and objects: one paragraph, exit code 2, nothing written."""

import re
import shutil
from pathlib import Path

import pytest

from selfpatch import cli
from tests.backbones.small_vits import small_vit
from tests.evaluation.boxed_scenes import annotation, write_voc
from tests.evaluation.labeled_classes import write_class, write_classes
from tests.evaluation.labeled_scenes import write_ade20k


@pytest.fixture
def refused(tmp_path, capsys, monkeypatch):
    """`selfpatch evaluate` of a tiny model refuses in words that match, and writes nothing."""
    backbone = small_vit("no class token")
    monkeypatch.setattr("selfpatch.commands.evaluate.load_backbone", lambda *_, **__: backbone)

    def check(task: str, data: Path, *flags: object, says: str) -> None:
        out = tmp_path / "out"
        arguments = ["evaluate", "tiny", "--task", task, "--data", data, "--out", out, "--device", "cpu", *flags]
        code = cli.main([str(argument) for argument in arguments])
        said = capsys.readouterr().err
        assert code == 2, said
        assert said.startswith("selfpatch: ") and "Traceback" not in said and "Error(" not in said
        assert re.search(says, said), f"{says!r} is not in: {said}"
        assert not [path for path in out.rglob("*") if path.is_file()]

    return check


def test_clusters(refused, tmp_path):
    data = write_ade20k(tmp_path / "data", size=(40, 56))
    refused("overclustering", data, "--image-size", 64, says="have 48 patches together, which do not make 500 clusters")
    refused("overclustering", data, "--image-size", 12, says="image-size is 12 px, less than one patch of 16 x 16")
    refused("overclustering", data, "--num-clusters", 1, says=r"num-clusters is \(1,\); each must be at least 2")
    refused(
        "overclustering",
        data,
        "--num-clusters",
        "clases",
        says="--num-clusters is 'clases'; it must be .*classes",
    )
    refused("overclustering", data, "--num-seeds", 0, says="num-seeds is 0; it must be at least 1")
    refused(
        "overclustering", tmp_path / "nope", says="there is no folder .*nope; give the folder that holds the labelled"
    )
    (data / "annotations/validation/validation_0.png").unlink()
    refused("overclustering", data, says="1 of 3 images in .* have no mask")


CLASSES = ("knn-classification", "linear-classification")


@pytest.mark.parametrize("task", CLASSES)
def test_folders_of_classes(task, refused, tmp_path):
    data = write_classes(tmp_path / "data", num_classes=3)
    refused(task, tmp_path / "nope", says="there is no folder .*nope; give the folder that holds the classes")
    refused(task, data, "--max-images", 2, says="max-images is 2, less than one image for each of 3 classes")
    refused(task, data, "--image-size", 8, says="image-size is 8 px, less than one patch of 16 x 16")
    refused(task, data, "--image-size", 300, says="resize-size is 256; it must be at least image-size, .* 300")
    (data / "val/bee/0.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    refused(task, data, says=r"1 of 15 images in .* cannot be read: val/bee/0.png \(.*\); replace or remove them")
    shutil.rmtree(data / "train/bee")
    refused(task, data, says="train lacks 1 of the classes that the other split has: bee; the same classes must be in")
    shutil.rmtree(data / "val/bee")
    (data / "train/cow").mkdir()
    (data / "val/cow").mkdir()
    refused(task, data, says="there is no image below .*train/cow: looked for .* found no file at all")
    write_class(tmp_path / "one/ant", 0, 3)
    refused(task, tmp_path / "one", says="one holds one class alone, ant; at least two classes are needed")
    write_class(tmp_path / "one/bee", 1, 1)
    refused(task, tmp_path / "one", says="bee holds one image; at least two are needed")


def test_vectors_and_neighbours(refused, tmp_path):
    data = write_classes(tmp_path / "data", num_classes=2)
    refused(
        "knn-classification",
        data,
        "--num-neighbors",
        2,
        "--vector",
        "class_token",
        says="vector is class_token, but this model has no class",
    )
    refused(
        "linear-classification", data, "--vectors", "class_token", says="vector is class_token, but this model has no"
    )
    refused("knn-classification", data, "--vector", "cls", says="--vector is 'cls'; it must be auto, class_token")
    refused(
        "knn-classification", data, says=r"num-neighbors is \(10, 20, 100, 200\), all more than the 6 training images"
    )
    refused("linear-classification", data, "--lrs", "0", says=r"lrs is \(0.0,\); each must be above 0")


def test_images_with_boxes(refused, tmp_path):
    data = write_voc(tmp_path / "data")
    refused(
        "object-discovery", tmp_path / "nope", says="there is no folder .*nope; give the folder that holds images and"
    )
    refused(
        "object-discovery", data, "--split", "test", says="no list .*test.txt; the splits there are: train, trainval"
    )
    refused(
        "object-discovery", data, "--image-size", 9999, says="more than the 32768 of which every pair can be compared"
    )
    refused("object-discovery", data, "--features", "values", says="--features is 'values'; it must be keys or tokens")
    (data / "Annotations/000002.xml").write_text(annotation([(0, 0, 8, 8)], (8, 8)))
    refused("object-discovery", data, says="000002.xml is of an image of 8 x 8 pixels, but its image is 56 x 40")
    (data / "Annotations/000002.xml").unlink()
    refused("object-discovery", data, says="1 of 4 annotations that .* not there: Annotations/000002.xml")
    for name in ("000000", "000001", "000002", "000003"):
        (data / f"Annotations/{name}.xml").write_text(annotation([(0, 0, 8, 8)], difficult=1))
    refused(
        "object-discovery", data, "--skip-hard", says=r"none of 4 images in .* has an object that is neither difficult"
    )
