"""Pages that work offline: templates of this package, with styles, scripts and figures inline.

What stands in a page comes from this package and is known by its digest, or is escaped: names in a
checkpoint are somebody else's text.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from shiftscope.reporting.words import printable

if TYPE_CHECKING:
    from jinja2 import Template

    from shiftscope.reporting.pictures import Picture

__all__ = ["asset", "digest", "inline_figure", "template", "trusted"]


@cache
def asset(name: str) -> str:
    """A text file of this package."""
    return files("shiftscope.reporting").joinpath(name).read_text(encoding="utf-8")


@cache
def template(name: str) -> Template:
    """A template of this package: it escapes what it is given; nothing may be left out."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(asset(name))


def trusted(text: str) -> Any:
    """Mark text of this package, or JSON without markup, as fit to stand in the page as it is."""
    from markupsafe import Markup

    return Markup(text)


def digest(text: str) -> str:
    """What the policy of a page knows an inline style or script by."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def inline_figure(picture: Picture, *, exact: bool = False) -> dict[str, Any]:
    """What a template needs to place a picture.

    Args:
        picture: The picture.
        exact: Whether all of its colours are kept.

    Returns:
        Words, size in pixels, and the content of the file in base64.
    """
    width, height = picture.size
    return {
        "name": picture.name,
        "title": printable(picture.title),
        "caption": printable(picture.caption),
        "alt": printable(picture.alt),
        "data": base64.b64encode(picture.png if exact else picture.inline()).decode("ascii"),
        "width": width,
        "height": height,
    }
