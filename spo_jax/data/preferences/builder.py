"""The tensorflow-datasets builder of preference pairs, which writes array_record files without TensorFlow.

One builder serves every source. It is shard-based rather than a `GeneratorBasedBuilder` of tfds, because that one
shuffles, and shuffles a split of more than 1 GB through files that it opens with TensorFlow. Records are therefore in
the source's order, and loading shuffles. This module needs the extra ``data``; `spo_jax.data.preferences.writer`
imports it only when it writes records.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from spo_jax.data.preferences.check import Pair

# Pick-a-Pic's 959,000 rows (v2) make 470 files. Readers keep every file open, and many systems allow 1,024.
ROWS_PER_SHARD = 2048

FEATURES = {
    "jpg_0": tfds.features.Image(shape=(None, None, 3), doc="the file of the source, in any format that Pillow reads"),
    "jpg_1": tfds.features.Image(shape=(None, None, 3), doc="the file of the source, in any format that Pillow reads"),
    "caption": tfds.features.Text(),
    "label_0": np.float32,
    "label_1": np.float32,
    "has_label": np.bool_,
    "are_different": np.bool_,
    "image_0_uid": tfds.features.Text(),
    "image_1_uid": tfds.features.Text(),
    "num_example_per_prompt": tfds.features.Scalar(np.int32, doc="0 if the source does not say"),
}


class PreferencePairs(tfds.core.ShardBasedBuilder):
    """Builds pairs of images of the same caption with their preference labels, in the columns of Pick-a-Pic."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(
        self,
        *,
        split: str,
        rows: int,
        checked: Iterator[Pair | str],
        shard: int = ROWS_PER_SHARD,
        rule: str = "",
        **kwargs,
    ):
        """Creates the builder of one split.

        Args:
          split: name of the split.
          rows: number of elements of ``checked``.
          checked: for each row in order, its pair, or the reason why it was rejected.
          shard: number of rows per file.
          rule: the rule by which pairs were filtered, for the description; empty if they were not.
          **kwargs: arguments of the tfds builder.
        """
        self._split = split
        self._shards = -(-rows // shard)
        self._checked = checked
        self._shard = shard
        self._rule = rule
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        filtered = f" Filtered by scores of the images ({self._rule})." if self._rule else ""
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"Preference pairs: two images of a caption, and which one was preferred.{filtered}",
            features=tfds.features.FeaturesDict(FEATURES),
        )

    def _shard_iterators_per_split(self, dl_manager: Any) -> dict[str, list[Callable[[], Iterator]]]:
        # tfds writes the shards one after another, so that they can share the stream of rows.
        del dl_manager
        return {self._split: [self._examples] * self._shards}

    def _examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yields the accepted pairs among the rows of the next shard."""
        for key, pair in enumerate(itertools.islice(self._checked, self._shard)):
            if isinstance(pair, Pair):
                example = _example(pair)
                yield key, example
                # The example has been written. tfds keeps it until the end of the shard, but only to count examples.
                example.clear()


def _example(pair: Pair) -> dict[str, Any]:
    """Returns a pair as the columns of `FEATURES`."""
    return {
        "jpg_0": pair.images[0],
        "jpg_1": pair.images[1],
        "caption": pair.caption,
        "label_0": pair.labels[0],
        "label_1": pair.labels[1],
        "has_label": pair.has_label,
        "are_different": pair.are_different,
        "image_0_uid": pair.uids[0],
        "image_1_uid": pair.uids[1],
        "num_example_per_prompt": pair.num_example_per_prompt,
    }
