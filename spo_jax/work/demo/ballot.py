"""A ballot: what is voted on, where the votes go, and what they say. The tab `vote_tab` shows it."""

import dataclasses
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from spo_jax.core.errors import UserError
from spo_jax.core.markdown import code
from spo_jax.core.tally import Tally, count_votes
from spo_jax.core.words import counted
from spo_jax.work.demo.context import BASE_MODEL, PageContext
from spo_jax.work.demo.pairs import Matchup, Pair, PairStock
from spo_jax.work.demo.votes import LEFT, RIGHT, TIE, Vote, VoteFolder

COLLECT, COMPARE = "preferences", "comparison"  # kinds of ballots, and their folders
LABELS = {"left": LEFT, "right": RIGHT, "tie": TIE}
SKIP = "skip"
_MOST_PROMPTS = 10_000


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a person chose to vote on.

    Attributes:
      kind: `COLLECT` to vote on images of one model, or `COMPARE` to compare two LoRAs.
      first: name of the LoRA.
      second: name of the other LoRA, which only `COMPARE` has.
      prompts: prompts, one per line; empty for those of the page.
      steps: number of denoising steps.
      guidance: guidance scale.
      voter: name of who votes; may be empty.
    """

    kind: str = COLLECT
    first: str = BASE_MODEL
    second: str = BASE_MODEL
    prompts: str = ""
    steps: int = 20
    guidance: float = 5.0
    voter: str = ""


class Ballot:
    """Hands out pairs and keeps votes; any number of people may use it at a time.

    Args:
      page: what the tabs share.
    """

    def __init__(self, page: PageContext):
        self._page = page
        self._stock = PairStock(page)

    def folder(self, kind: str) -> Path:
        """Returns where votes of a kind of ballot are kept."""
        return self._page.out / kind

    def matchup(self, setup: Setup) -> Matchup:
        """Returns what is compared.

        Raises:
          UserError: a LoRA cannot be read, or both are the same.
        """
        names = (setup.first or "", (setup.second if setup.kind == COMPARE else setup.first) or "")
        versions = (self._page.lora_version(names[0]), self._page.lora_version(names[1]))
        if setup.kind == COMPARE and versions[0] == versions[1]:
            raise UserError("both sides are the same: choose two different LoRAs, or a LoRA and no LoRA")
        lines = [line.strip() for line in setup.prompts.splitlines() if line.strip()]
        if len(lines) > _MOST_PROMPTS:
            raise UserError(f"there are {len(lines)} prompts: expected at most {_MOST_PROMPTS}")
        return Matchup(names, versions, tuple(lines or self._page.prompts), int(setup.steps), float(setup.guidance))

    def next_pair(self, setup: Setup) -> Pair:
        """Returns a pair that nobody has seen.

        Raises:
          UserError: as `matchup`, or images cannot be drawn.
        """
        return self._stock.take(self.matchup(setup))

    def vote(self, token: str, choice: str, voter: str = "", known: Collection[str] = ()) -> bool:
        """Keeps a vote; it is on disk when this returns.

        Args:
          token: the pair's.
          choice: a key of `LABELS`, or `SKIP`, which leaves nothing behind.
          voter: name of who votes.
          known: names of matchups, as `comparison` gives them, whose result this person has seen: no blind vote.

        Returns:
          Whether the pair was one to vote on; False if somebody has voted on it, or if the page was started again.

        Raises:
          UserError: the vote cannot be written, and can be tried again.
        """
        if choice not in (*LABELS, SKIP):
            raise UserError(f"a vote is one of {', '.join((*LABELS, SKIP))}, not {choice!r}")
        pair = self._stock.claim(token)
        if pair is None:
            return False
        if choice == SKIP:
            return True
        kind = COMPARE if pair.matchup.is_blind else COLLECT
        facts = _facts(pair, voter)
        if kind == COMPARE:
            facts["blind"] = comparison(pair.matchup) not in known
        try:
            VoteFolder(self.folder(kind)).add(Vote(pair.prompt, pair.images, LABELS[choice], facts))
        except BaseException:
            self._stock.give_back(pair)
            raise
        return True

    def count(self, kind: str) -> int:
        """Returns how many votes of a kind are on disk."""
        return len(VoteFolder(self.folder(kind)).read())

    def tally(self, matchup: Matchup) -> Tally:
        """Counts the blind votes on disk between two LoRAs, in either order; the second is the matchup's second."""
        return count_votes(winner for winner, blind in self._winners(matchup) if blind)

    def count_late(self, matchup: Matchup) -> int:
        """Returns how many votes between two LoRAs were cast after their names were shown, which `tally` leaves out."""
        return sum(not blind for _, blind in self._winners(matchup))

    def _winners(self, matchup: Matchup) -> Iterator[tuple[int | None, bool]]:
        """Yields for each vote between two LoRAs which of them won, None for a tie, and whether it was blind."""
        sides = list(zip(matchup.loras, matchup.versions, strict=True))
        for vote in VoteFolder(self.folder(COMPARE)).read():
            shown = _sides(vote)
            if sorted(shown) != sorted(sides) or vote.get("label") not in (LEFT, RIGHT, TIE):
                continue
            winner = None if vote["label"] == TIE else sides.index(shown[int(vote["label"])])
            yield winner, vote.get("blind") is not False


def comparison(matchup: Matchup) -> str:
    """Returns a name of what is compared, in whichever order."""
    return " / ".join(sorted(map("@".join, zip(matchup.loras, matchup.versions, strict=True))))


def _facts(pair: Pair, voter: str) -> dict[str, Any]:
    """Returns how the images of a pair were drawn, each list left first."""
    matchup = pair.matchup
    return {
        "voter": voter[:100].encode(errors="replace").decode(),  # JSON can spell halves of characters
        "loras": [matchup.loras[side] for side in pair.order],
        "versions": [matchup.versions[side] for side in pair.order],
        "seed": pair.seed,
        "rows": list(pair.rows),
        "steps": matchup.steps,
        "guidance": matchup.guidance,
    }


def _sides(vote: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns name and version of the LoRAs of a line; nothing for a line of another program."""
    names, versions = vote.get("loras"), vote.get("versions")
    both = [*names, *versions] if isinstance(names, list) and isinstance(versions, list) else []
    if len(both) != 4 or not all(isinstance(text, str) for text in both):
        return []
    return list(zip(names, versions, strict=False))


def result(names: tuple[str, str], tally: Tally, late: int = 0) -> str:
    """Says in Markdown what the votes between two say, of which ``late`` ones are not counted."""
    shown = [code(name or "no LoRA") for name in names]
    counts = zip((*shown, "tie"), (tally.first, tally.second, tally.ties), strict=True)
    lines = ["\n".join(["| | votes |", "|---|---|", *(f"| {name} | {votes} |" for name, votes in counts)])]
    if late:
        lines.append(f"Not counted: {counted(late, 'vote')} of people to whom the names had been shown.")
    share = tally.share()
    if share is None:
        return "\n\n".join([*lines, "No vote is decided yet."])
    low, high = tally.interval()
    p = tally.p_value()
    decided = counted(tally.decided, "decided vote")
    lines.append(f"{shown[1]} won {share:.0%} of {decided} (95 % interval {low:.0%} to {high:.0%}).")
    better = shown[1] if tally.second > tally.first else shown[0]
    by_chance = f"sign test, p = {p:.2g}" if p >= 1e-4 else "sign test, p < 0.0001"
    if p < 0.05:
        lines.append(f"{better} is preferred: chance alone rarely gives such a lead ({by_chance}).")
    else:
        lines.append(f"Chance alone would give such a lead often enough: votes of more people can tell ({by_chance}).")
    return "\n\n".join(lines)
