"""The file of a reward: local ones of any name, published ones by theirs, and what is fetched with them."""

import pytest

from spo_jax.core.errors import UserError
from spo_jax.rewards.common import published_file
from spo_jax.rewards.common.published_file import PublishedFile, find_file, local_file

PUBLISHED = PublishedFile("owner/rewards", "weights.pt", "the reward", ("sizes.json",))


@pytest.fixture
def fetched(monkeypatch, tmp_path):
    """What was asked of the hub, whose repositories all hold weights.pt and other.pt."""
    calls = []
    for name in ("weights.pt", "other.pt"):
        (tmp_path / name).touch()

    def resolve(repository, allow_patterns):
        calls.append((repository, allow_patterns))
        return tmp_path

    monkeypatch.setattr(published_file.hub, "resolve", resolve)
    return calls


@pytest.mark.parametrize(
    ("source", "repository", "name"),
    [
        ("", "owner/rewards", "weights.pt"),
        ("someone/copy", "someone/copy", "weights.pt"),
        ("someone/copy/other.pt", "someone/copy", "other.pt"),
    ],
)
def test_a_source_on_the_hub_is_fetched_with_what_lies_beside_it(fetched, tmp_path, source, repository, name):
    assert local_file(source, PUBLISHED) is None and not fetched
    assert find_file(source, PUBLISHED) == tmp_path / name
    assert fetched == [(repository, (name, "sizes.json"))]


def test_a_repository_without_the_file_is_refused(fetched):
    message = "someone/copy on the hub has no file absent.pt: expected the weights of the reward"
    with pytest.raises(UserError, match=message):
        find_file("someone/copy/absent.pt", PUBLISHED)


def test_a_local_source_is_a_folder_with_the_published_name_or_a_file_of_any_name(fetched, tmp_path):
    for name in ("weights.pt", "other.pt"):
        assert find_file(str(tmp_path / name), PUBLISHED) == tmp_path / name
    assert find_file(str(tmp_path), PUBLISHED) == tmp_path / "weights.pt" and not fetched
    (tmp_path / "weights.pt").unlink()
    with pytest.raises(UserError, match="is a folder without a model: expected a folder with weights.pt"):
        local_file(str(tmp_path), PUBLISHED)
