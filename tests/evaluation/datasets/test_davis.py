import numpy as np
import pytest
from PIL import Image

from selfpatch.evaluation.datasets.davis import Davis, read_annotation, read_frame
from tests.data.reading.made_files import png_bytes, png_chunk
from tests.evaluation.moving_shapes import save_annotation, write_davis


def annotation(root, video: str = "ball", frame: int = 0):
    return root / f"Annotations/480p/{video}/{frame:05d}.png"


def test_videos_in_the_order_of_the_list(tmp_path):
    root = write_davis(tmp_path, videos=("zebra", "ant"), num_frames=4, size=(20, 30))
    data = Davis(root)
    assert [video.name for video in data.videos] == ["zebra", "ant"]
    for video in data.videos:
        assert (video.size, video.num_objects) == ((20, 30), 2)
        assert [frame.image.name for frame in video.frames] == [f"{t:05d}.jpg" for t in range(4)]
        assert [frame.annotation.name for frame in video.frames] == [f"{t:05d}.png" for t in range(4)]
        assert read_frame(video.frames[0]).shape == (20, 30, 3)
        assert set(np.unique(read_annotation(video.frames[0]))) == {0, 1, 2}
    assert data.describe() == {
        "split": "ImageSets/2017/val.txt", "num_videos": 2, "num_frames": 8, "num_objects": 4, "val_set": "3065e31ad2c0",
    }  # fmt: skip


def test_limits_on_videos_and_frames_hold_for_the_check_too(tmp_path):
    root = write_davis(tmp_path, videos=("a", "b", "c", "d"), num_frames=5, size=(20, 30))
    annotation(root, "b").write_bytes(b"")
    annotation(root, "c", frame=4).write_bytes(b"")
    data = Davis(root, max_videos=2, max_frames=3)
    assert [(video.name, len(video.frames)) for video in data.videos] == [("a", 3), ("c", 3)]
    with pytest.raises(ValueError, match="00004.png cannot be read"):
        Davis(root, max_videos=2)


def test_empty_lines_blanks_and_repeated_names_in_the_list(tmp_path):
    root = write_davis(tmp_path, size=(20, 30))
    (root / "ImageSets/2017/val.txt").write_text("\n ball \n\nball\r\nbox\n", encoding="utf-8-sig")
    assert [video.name for video in Davis(root).videos] == ["ball", "box"]


def test_a_list_in_another_encoding_is_named(tmp_path):
    root = write_davis(tmp_path, size=(20, 30))
    (root / "ImageSets/2017/val.txt").write_text("b\xe4r\n", encoding="latin-1")
    with pytest.raises(
        ValueError, match="the list .*2017/val.txt cannot be read: .*; it holds one name per line, .*UTF-8"
    ):
        Davis(root)


@pytest.mark.parametrize("mode", ["palette", "gray", "16 bit", "1 bit"])
def test_annotations_of_every_kind_hold_numbers(tmp_path, mode):
    root = write_davis(tmp_path, videos=("ball",), num_objects=1, size=(20, 30))
    labels = np.zeros((20, 30), np.uint8)
    labels[3:9, 4:8] = 1 if mode == "1 bit" else 7
    if mode == "palette":
        save_annotation(annotation(root), labels)
    elif mode == "1 bit":
        Image.fromarray(labels.astype(bool)).save(annotation(root))
    else:
        Image.fromarray(labels.astype(np.uint16 if mode == "16 bit" else np.uint8)).save(annotation(root))
    (video,) = Davis(root).videos
    assert read_annotation(video.frames[0]).tolist() == labels.tolist()
    assert video.num_objects == labels.max()


@pytest.mark.parametrize(("color_type", "bits"), [(0, 2), (0, 4), (3, 2), (3, 4), (0, 16)])
def test_annotations_of_few_bits(tmp_path, color_type, bits):
    root = write_davis(tmp_path, videos=("ball",), num_objects=1, size=(20, 30))
    labels = np.arange(600).reshape(20, 30) // 200
    palette = png_chunk(b"PLTE", bytes(3 * 2**bits)) if color_type == 3 else b""
    annotation(root).write_bytes(png_bytes(labels, bits, color_type, chunks=(palette,)))
    (video,) = Davis(root).videos
    assert (read_annotation(video.frames[0]).tolist(), video.num_objects) == (labels.tolist(), 2)


def test_annotations_that_are_jpeg_are_refused(tmp_path):
    root = write_davis(tmp_path, videos=("ball",), size=(20, 30))
    Image.new("L", (30, 20), 1).save(annotation(root), format="JPEG")
    with pytest.raises(ValueError, match="the annotation .*00000.png cannot be read: a JPEG file"):
        Davis(root)


def test_files_that_macos_leaves_beside_others_do_not_count(tmp_path):
    root = write_davis(tmp_path, size=(20, 30))
    before = Davis(root).describe()
    for path in [*root.rglob("*.jpg"), *root.rglob("*.png")]:
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7" + bytes(80))
    assert Davis(root).describe() == before


def test_void_is_background_and_objects_are_those_of_the_first_frame(tmp_path):
    root = write_davis(tmp_path, videos=("ball",), num_objects=1, size=(20, 30))
    labels = np.zeros((20, 30), np.uint8)
    labels[:4], labels[10:15] = 255, 2
    save_annotation(annotation(root), labels)
    labels[16:] = 5
    save_annotation(annotation(root, frame=1), labels)
    (video,) = Davis(root).videos
    assert video.num_objects == 2  # object 1 is nowhere in the first frame, and 5 appears later
    assert np.unique(read_annotation(video.frames[0])).tolist() == [0, 2]
    assert np.unique(read_annotation(video.frames[1])).tolist() == [0, 2, 5]


def test_as_many_objects_as_a_mask_can_hold(tmp_path):
    root = write_davis(tmp_path, videos=("ball",), num_objects=1, size=(20, 30))
    labels = np.arange(600).reshape(20, 30) % 255
    save_annotation(annotation(root), labels.astype(np.uint8))
    assert Davis(root).videos[0].num_objects == 254
