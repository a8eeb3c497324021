import json
import shutil

import numpy as np
import pytest
from PIL import Image

from selfpatch.evaluation.datasets.box_folder import BoxFolder
from tests.evaluation.boxed_scenes import OBJECT, annotation, write_plain, write_voc
from tests.evaluation.coco_scenes import write_coco


def test_reads_vocs_layout(tmp_path):
    root = write_voc(tmp_path / "VOC2007", count=5)
    data = BoxFolder(tmp_path)  # the folder that holds the year
    assert [item.path.name for item in data.images] == [f"00000{i}.jpg" for i in range(5)]
    for item in data.images:
        assert item.size == (40, 56) and len(item.boxes) == 1  # parts of objects are no objects
        left, top, right, bottom = map(int, item.boxes[0])
        pixels = data.read_image(item).astype(int)
        is_object = np.abs(pixels - OBJECT).sum(axis=-1) < 60
        inside = np.zeros(item.size, bool)
        inside[top:bottom, left:right] = True
        assert (is_object == inside).mean() > 0.97
    assert data.describe() == {
        "split_found": "Pascal VOC, trainval", "num_images": 5, "num_images_without_objects": 0, "num_objects": 5,
        "val_set": "809a01c09777",
    }  # fmt: skip
    assert len(BoxFolder(root, split="train").images) == 3
    assert [item.path.stem for item in BoxFolder(root, max_images=2).images] == ["000000", "000002"]


def test_reads_the_plain_layout(tmp_path):
    assert len(BoxFolder(write_plain(tmp_path)).images) == 4
    with pytest.raises(ValueError, match="split is train, but .* has no splits; leave it out"):
        BoxFolder(tmp_path, split="train")


def test_which_objects_count(tmp_path):
    root = write_voc(tmp_path)
    write = lambda i, text: (root / f"Annotations/00000{i}.xml").write_text(text)  # noqa: E731
    write(0, annotation([(0, 0, 8, 8)], difficult=1))
    write(
        1,
        annotation([(0, 0, 8, 8)], truncated=1).replace("</annotation>", "")
        + annotation([(8, 8, 9, 9)])[len("<annotation>") :],
    )
    write(2, annotation([]))
    everything, easy = BoxFolder(root), BoxFolder(root, skip_hard=True)
    assert [len(item.boxes) for item in everything.images] == [1, 2, 1] and everything.num_left_out == 1
    assert [len(item.boxes) for item in easy.images] == [1, 1] and easy.num_left_out == 2
    assert easy.images[0].boxes == ((8, 8, 9, 9),)


def test_what_other_tools_write(tmp_path):
    root = write_plain(tmp_path, count=1)
    text = annotation([(0, 0, 8, 8)], (0, 0)).replace(">8<", ">8.7<").replace("<difficult>0</difficult>", "")
    (root / "annotations/000000.xml").write_text(text)
    assert BoxFolder(root).images[0].boxes == ((0, 0, 8, 8),)


def test_reads_coco(tmp_path):
    root = write_coco(tmp_path / "coco")
    file = root / "annotations/instances_val2017.json"
    content = json.loads(file.read_text())
    for entry in content["annotations"]:
        entry["bbox"] = [side + 0.3 for side in entry["bbox"]]  # right and bottom: 0.6 beyond
        entry.pop("segmentation")
    file.write_text(json.dumps(content))
    data = BoxFolder(root)
    # The last of four images has nothing on it, and the first one has a crowd.
    assert (len(data.images), data.num_left_out, data.layout) == (3, 1, "COCO, val2017")
    of_first = [e["bbox"] for e in content["annotations"] if e["image_id"] == 5 and not e["iscrowd"]]
    expected = [tuple(round(side) for side in (x, y, x + w, y + h)) for x, y, w, h in of_first]
    assert list(data.images[0].boxes) == expected
    assert len(BoxFolder(root, split="train2017").images) == 4
    with pytest.raises(ValueError, match="train2014 and .*instances_train2014.json not found; .*COCO comes from"):
        BoxFolder(root, split="train2014")
    with pytest.raises(ValueError, match="skip-hard goes by what Pascal VOC says of its objects, which COCO does not"):
        BoxFolder(root, skip_hard=True)


def rewrite(text: str):
    return lambda root: (root / "Annotations/000001.xml").write_text(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shutil.rmtree, "there is no folder .*; give the folder that holds images and boxes"),
        (lambda root: shutil.rmtree(root / "Annotations"), "holds ImageSets, JPEGImages; images and boxes are expected"),
        (lambda root: shutil.rmtree(root / "ImageSets"), "no list .*trainval.txt; it has one image name per line"),
        (lambda root: (root / "ImageSets/Main/trainval.txt").unlink(), "no list .*; the splits there are: train$"),
        (lambda root: (root / "ImageSets/Main/trainval.txt").write_text("\n"), "trainval.txt is empty"),
        (lambda root: (root / "JPEGImages/000001.jpg").unlink(), "1 of 4 images that .* not there: JPEGImages/000001.jpg"),
        (lambda root: (root / "Annotations/000001.xml").unlink(), "1 of 4 annotations that .*: Annotations/000001.xml"),
        (lambda root: (root / "JPEGImages/000001.jpg").write_bytes(b"x"), r"1 of 4 images .*: JPEGImages/000001.jpg \(not"),
        (rewrite("<annotation>"), "000001.xml is damaged or no XML"),
        (rewrite(annotation([(0, 0, 8, 8)], (56, 40))), "of an image of 40 x 56 pixels, but its image is 56 x 40"),
        (rewrite(annotation([(8, 0, 60, 8)])), r"has a box from \(9, 1\) to \(60, 8\), its image is 56 x 40"),
        (rewrite(annotation([(8, 0, 8, 8)])), r"has a box from \(9, 1\) to \(8, 8\)"),
        (rewrite(annotation([(0, 0, 8, 8)]).replace("<ymax>8</ymax>", "")), "has None where bndbox/ymax of an object"),
        (rewrite(annotation([(0, 0, 8, 8)]).replace("<ymax>8<", "<ymax>low<")), "has 'low' where bndbox/ymax of an obj"),
        (lambda root: [p.write_text(annotation([])) for p in (root / "Annotations").iterdir()], "none of 4 images in .* has"),
        (lambda root: shutil.copytree(root, root / "VOC2012") and shutil.copytree(root, root / "VOC2007"),
         "holds ., VOC2007, VOC2012; give one of them"),
    ],
)  # fmt: skip
def test_refuses_what_is_not_complete(tmp_path, change, message):
    root = write_voc(tmp_path / "data")
    change(root)
    with pytest.raises(ValueError, match=message):
        BoxFolder(root)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "annotations/000001.xml").unlink(), "1 of 4 images in .* have no annotation of the same name"),
        (lambda root: (root / "images/000001.jpg").unlink(), "1 of 4 annotations in .* have no image of the same name"),
        (lambda root: [p.unlink() for p in (root / "annotations").iterdir()], "has no annotation in annotations/"),
        (lambda root: [p.unlink() for p in (root / "images").iterdir()], "has no image in images/; the layouts are"),
    ],
)  # fmt: skip
def test_refuses_files_without_a_partner(tmp_path, change, message):
    root = write_plain(tmp_path)
    change(root)
    with pytest.raises(ValueError, match=message):
        BoxFolder(root)


def test_boxes_are_of_the_upright_image(tmp_path):
    root = write_plain(tmp_path, count=1)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(root / "images/000000.jpg").save(root / "images/000000.jpg", exif=exif)
    with pytest.raises(ValueError, match="is of an image of 56 x 40 pixels, but its image is 40 x 56"):
        BoxFolder(root)
