"""The world shipped in the package: captioned images of coloured shapes, with a truth in closed form. Only numpy.

Wherever a model, a list of prompts, a reward or a data set is named, `NAME` names the toy's.
"""

from pathlib import Path

NAME = "toy"
ASSETS = Path(__file__).parent / "assets"  # the trained pipeline and preference models

# Where a preference model is named: one that learned from exact labels, and one that learned from people's.
PREFERENCE_MODELS = {NAME: ASSETS / "spm", f"{NAME}_people": ASSETS / "spm_people"}

# Where a latent reward model is named: one that learned from people's labels.
LATENT_JUDGES = {f"{NAME}_people": ASSETS / "lrm_people"}
