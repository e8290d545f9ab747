"""The world shipped in the package: captioned images of coloured shapes, with a truth in closed form. Only numpy.

Wherever a model, a list of prompts, a reward or a data set is named, `NAME` names the toy's.
"""

from pathlib import Path

NAME = "toy"
ASSETS = Path(__file__).parent / "assets"  # the trained pipeline and preference model
