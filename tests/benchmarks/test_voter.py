"""The simulated voter: its votes follow its taste but for the slips, and its folder is one that `prepare` reads."""

import numpy as np
import pytest
from PIL import Image

import spo_jax
from benchmarks import voter
from spo_jax.core.errors import UserError
from spo_jax.data.preferences.check import check
from spo_jax.data.preferences.sources.folder import open_form
from spo_jax.rewards.common.protocol import Context, Reward


@pytest.fixture
def grey_model(monkeypatch):
    """A model that draws plain greys at random in place of the toy, which would take half a minute to compile."""

    def sample(*, prompts, out, seed, **_):
        rng = np.random.default_rng(seed)
        out.mkdir(parents=True, exist_ok=True)
        files = [out / f"{number:04d}.png" for number in range(len(prompts))]
        for file in files:
            Image.new("RGB", (16, 16), (int(rng.integers(256)),) * 3).save(file)
        return files

    monkeypatch.setattr(spo_jax, "sample", sample)


def shades(raw):
    return [np.asarray(Image.open(image.folder / image.name)).mean() for image in raw.images]


@pytest.mark.parametrize(("taste", "preferred"), [("dark", min), ("light", max)])
def test_the_voter_votes_by_its_taste(tmp_path, grey_model, taste, preferred):
    file = voter.vote(tmp_path, taste, 60, at_random=0)
    source = open_form(tmp_path)
    assert file == tmp_path / "train.jsonl" and source.count("train") == 60
    for raw in source.rows("train"):
        pair = check(raw)
        assert shades(raw)[pair.labels.index(1.0)] == preferred(shades(raw))


def test_a_share_of_the_votes_is_cast_at_random_and_prompts_take_turns(tmp_path, grey_model):
    voter.vote(tmp_path, "dark", 92, at_random=0.5)
    rows = list(open_form(tmp_path).rows("train"))
    wrong = sum(shades(raw)[raw.labels.index(1)] > min(shades(raw)) for raw in rows)
    assert 10 < wrong < 40  # half of the random ones agree with the taste all the same
    assert all(sum(raw.caption == row.caption for row in rows) == 2 for raw in rows)  # 46 prompts


def test_votes_are_not_written_over(tmp_path, grey_model):
    voter.vote(tmp_path, "dark", 2)
    with pytest.raises(UserError, match="train.jsonl"):
        voter.vote(tmp_path, "dark", 2)


def test_the_taste_is_a_reward_of_evaluation():
    reward = voter.load("dark", Context())
    assert isinstance(reward, Reward)
    images = np.full((2, 32, 32, 3), -1.5, np.float32)
    images[1, 4:-4, 4:-4] = 1  # what is in the middle does not count
    assert reward.measure(images, ["a", "b"])["dark"].tolist() == [1, 1]
    vivid = voter.load("vivid", Context()).measure(images * np.float32([1, 1, -1]), ["a", "b"])["vivid"]
    assert vivid.tolist() == [2, 2]
    with pytest.raises(
        UserError, match="eval.rewards = 'benchmarks.voter:loud': expected one of benchmarks.voter:dark"
    ):
        voter.check("loud", Context())
