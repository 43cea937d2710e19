"""From where a worker stages a variant's files: from a peer that has them, else from the origin.

Each new holder serves `FAN_OUT` others, so copies multiply each round: a tree, as fast as the network allows. The
origin is whatever everyone shares, a file system or a hub: few read it at once, however many workers there are.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from pilotlight.core.model import WorkerId

FAN_OUT = 2
"""Uploads of one variant that a worker serves at once. Two keep its network busy where one reader's disk would not;
more only divide it, and the first copy of a round, from which the next one grows, comes later."""
ORIGIN_READERS = 4
"""Workers that read one variant from the origin at once. One stream seldom fills the line of a shared file system or a
hub; a few do, and beyond that each one more slows the others, and everybody else who uses it. So many seeds also save
the tree its first two rounds."""
PEERS_TRIED_MAX = 3
"""A worker that could not fetch a variant from so many peers reads the origin: its own network may be the reason."""
FAILURES_MAX = 3
"""A peer from which so many fetches of a variant failed in a row serves it no more, until it reports it anew."""


def choose(free: Sequence[Iterable[WorkerId]], readers: int, failed: Collection[WorkerId]) -> WorkerId | None:
    """The source for a worker on whose host the files are not: the least busy peer, "" for the origin, None to wait.

    free: holders by how many uploads they serve, those with none first; `FAN_OUT` groups. readers: of the origin now.
    failed: peers that have failed this worker; no more than `PEERS_TRIED_MAX`, so few are passed over.
    """
    if len(failed) < PEERS_TRIED_MAX:
        for holders in free:
            for holder in holders:
                if holder not in failed:
                    return holder
    return "" if readers < ORIGIN_READERS else None
