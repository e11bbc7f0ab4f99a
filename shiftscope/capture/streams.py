"""The streams of a window as its records keep them: on the CPU, gradients put together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shiftscope.record import Stream
from shiftscope.tally import Tally
from shiftscope.tally.transfer import tallies_to_host

__all__ = ["kept_streams", "shown_name"]


def shown_name(name: str) -> str:
    """The stream of the report that numbers recorded under a name belong to."""
    return name.removesuffix("_alone").removesuffix("_every")


def kept_streams(sites: Mapping[str, Mapping[str, Stream]]) -> dict[str, dict[str, Stream]]:
    """What is kept of the streams of all sites; they come to the CPU together.

    Args:
        sites: Site to its streams by name.

    Returns:
        The same with all tallies on the CPU, and with ``grad_z`` of all calls of a site.
    """
    tallies = [
        tally
        for streams in sites.values()
        for stream in streams.values()
        for tally in vars(stream).values()
        if isinstance(tally, Tally)
    ]
    moved = {id(old): new for old, new in zip(tallies, tallies_to_host(tallies), strict=True)}

    def there(stream: Stream) -> Stream:
        found: dict[str, Any] = {name: moved.get(id(own)) for name, own in vars(stream).items()}
        return Stream(**found)

    return {
        site: _all_gradients({name: there(stream) for name, stream in streams.items()})
        for site, streams in sites.items()
    }


def _all_gradients(streams: dict[str, Stream]) -> dict[str, Stream]:
    """Calls whose input needs no gradient count for grad_z, but not for the backward gain."""
    alone = streams.get("grad_z_alone")
    if alone is None:
        return streams
    paired, every = streams.get("grad_z"), streams.get("grad_z_every")
    if paired is None:
        return {**streams, "grad_z": alone}
    return {**streams, "grad_z": every or paired.merge(alone), "grad_z_paired": paired}
