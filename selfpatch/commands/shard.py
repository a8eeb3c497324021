"""`selfpatch shard`: images as tar shards with an index, which are read like the folder they come from."""

from pathlib import Path

from selfpatch.config import ImagesConfig
from selfpatch.data.image_folder import plural
from selfpatch.data.manifest import open_images
from selfpatch.data.shards.write_shards import write_shards
from selfpatch.errors import working
from selfpatch.output.atomic_files import require_writable
from selfpatch.output.terminal import say


def shard(
    images: Path | str,
    out: Path | str,
    *,
    max_size: int = 1000,
    include: tuple[str, ...] = (),
    exclude: tuple[str, ...] = (),
) -> int:
    """Copy all images below `images` to OUT/shard-000000.tar, ... and write OUT/index.json; returns how many.

    Bytes, names and order are kept. Called again after a stop, it goes on behind the last finished shard.

    Args:
        max_size: of a shard, in MB (1,000,000 bytes).
        include, exclude: patterns of file names, as in `ImageFolder`.

    Raises:
        UserError: no image, or `out` cannot be written or holds something else.
    """
    out = Path(out)
    require_writable(out)
    source = open_images(images, ImagesConfig(include=include, exclude=exclude))
    num_images, num_shards, left_out = 0, 0, []
    with working():
        for written in write_shards(source, out, max_bytes=max_size * 1_000_000):
            num_shards += 1
            num_images += len(written.members)
            left_out += written.left_out
            count = plural(len(written.members), "image", "images")
            say(f"{written.file}: {count}, {written.stop:,} of {len(source):,} done")
    if not num_shards:
        say(f"{out} holds all shards of these images already")
        return len(open_images(out))
    for name, reason in left_out[:10]:
        say(f"left out, as it cannot be read: {name}: {reason}")
    if len(left_out) > 10:
        say(f"and {len(left_out) - 10} more; selfpatch check lists them")
    for note in source.notes:
        say(note)
    say(f"{plural(num_images, 'image', 'images')} in {plural(num_shards, 'shard', 'shards')}: {out}")
    return num_images
