"""The tfds builder by itself, whose memory does not grow with the rows of a shard."""

from spo_jax.data.preferences.builder import PreferencePairs
from spo_jax.data.preferences.check import Pair


class Counted(bytes):
    """An image that counts how many of its class are alive."""

    alive = 0
    most = 0

    def __init__(self, *_):
        Counted.alive += 1
        Counted.most = max(Counted.most, Counted.alive)

    def __del__(self):
        Counted.alive -= 1


def test_images_are_released_as_soon_as_they_are_written(tmp_path, picture):
    """tfds keeps every example of a shard; with 200 KB per image, a shard would take hundreds of MB."""

    def pairs():
        for number in range(100):
            images = Counted(picture(number)), Counted(picture(0))
            yield Pair(images, "a", (1.0, 0.0), True, True, ("", ""), 0)

    options = {"data_dir": str(tmp_path), "file_format": "array_record"}
    builder = PreferencePairs(split="train", rows=100, checked=pairs(), shard=50, **options)
    builder.download_and_prepare()
    assert Counted.most <= 6  # two each for the pair being written, the one before it, and the one being made
    assert builder.info.splits["train"].num_examples == 100 and builder.info.splits["train"].num_shards == 2
