"""Griffe extension: the meaning of a config field, which is an argument of ``setting``, becomes its docstring."""

import ast
from typing import Any

from griffe import Attribute, Docstring, Extension


class SettingMeanings(Extension):
    """Documents fields that are declared as ``name: type = setting(default, meaning, ...)``."""

    def on_attribute_instance(self, *, node: Any, attr: Attribute, **kwargs: Any) -> None:
        """Reads the meaning and the range of a field, and leaves its default as the value."""
        if str(attr.annotation) == "ClassVar":  # griffe knows only ClassVar[...] for what is no field
            attr.labels.discard("instance-attribute")
        value = getattr(node, "value", None)
        if not (isinstance(value, ast.Call) and getattr(value.func, "id", "") == "setting"):
            return
        default, meaning, *_ = value.args
        limits = {
            word.arg.replace("_", " "): ast.unparse(word.value) for word in value.keywords if word.arg != "memory"
        }
        text = ast.literal_eval(meaning) if isinstance(meaning, ast.Constant) else ast.unparse(meaning)
        if limits:
            text += f" Range: {', '.join(f'{word} `{limit}`' for word, limit in limits.items())}."
        attr.docstring = Docstring(text, lineno=node.lineno, parent=attr)
        attr.value = ast.unparse(default)
