"""The tfds builder by itself: memory does not grow with the rows of a shard."""

from spo_jax.data.preferences.format.builder import PreferencePairs
from spo_jax.data.preferences.format.check import Pair


class Counted(bytes):
    """A picture that knows how many of its kind are alive."""

    alive = most = 0

    def __init__(self, *_):
        Counted.alive += 1
        Counted.most = max(Counted.most, Counted.alive)

    def __del__(self):
        Counted.alive -= 1


def test_pictures_are_let_go_of_as_soon_as_they_are_written(tmp_path, picture):
    """tfds keeps every example of a shard; at 200 KB each a shard would be hundreds of MB."""

    def pairs():
        for number in range(100):
            images = Counted(picture(number)), Counted(picture(0))
            yield Pair(images, "a", (1.0, 0.0), True, True, ("", ""), 0)

    options = {"data_dir": str(tmp_path), "file_format": "array_record"}
    builder = PreferencePairs(split="train", rows=100, checked=pairs(), shard=50, **options)
    builder.download_and_prepare()
    assert Counted.most <= 6  # of the pair being written, the one before, and the one that is being made
    assert builder.info.splits["train"].num_examples == 100 and builder.info.splits["train"].num_shards == 2
