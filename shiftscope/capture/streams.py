"""The streams of a window as its records keep them: on the CPU, gradients put together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shiftscope.record import Stream
from shiftscope.tally import Tally
from shiftscope.tally.transfer import tallies_to_host

__all__ = ["kept_streams"]


def kept_streams(sites: Mapping[str, Mapping[str, Stream]]) -> dict[str, dict[str, Stream]]:
    """What is kept of the streams of all sites; they come to the CPU together.

    Args:
        sites: Site to its streams by name.

    Returns:
        The same with all tallies on the CPU, and with ``grad_z`` of all calls of a site.
    """
    own = {site: _all_gradients(streams) for site, streams in sites.items()}
    tallies = [
        tally
        for streams in own.values()
        for stream in streams.values()
        for tally in vars(stream).values()
        if isinstance(tally, Tally)
    ]
    moved = {id(old): new for old, new in zip(tallies, tallies_to_host(tallies), strict=True)}

    def there(stream: Stream) -> Stream:
        found: dict[str, Any] = {name: moved.get(id(own)) for name, own in vars(stream).items()}
        return Stream(**found)

    return {site: {name: there(s) for name, s in streams.items()} for site, streams in own.items()}


def _all_gradients(streams: Mapping[str, Stream]) -> dict[str, Stream]:
    """Calls whose input needs no gradient count for grad_z, but not for the backward gain."""
    alone = streams.get("grad_z_alone")
    paired = streams.get("grad_z")
    if alone is None:
        return dict(streams)
    if paired is None:
        return {**streams, "grad_z": alone}
    return {**streams, "grad_z": paired.merge(alone), "grad_z_paired": paired}
