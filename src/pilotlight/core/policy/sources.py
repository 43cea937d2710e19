"""From where a worker stages a variant's files: from a peer that has them or fetches them, else from the origin.

Who fetches passes on what has come, so that workers which ask together make a tree below one reader of the origin, and
have the files in little more than the time of one copy per branch. Who has them all serves the next. The origin is
whatever everyone shares, a file system or the manager's machine: few read it at once, however many workers there are.
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
DEPTH_MAX = 10
"""Workers between the origin and the last that fetches through them: a tree of so many levels has a thousand; in a
longer chain each only adds one more that may break it."""
PEERS_TRIED_MAX = 3
"""A worker that could not fetch a variant from so many peers reads the origin: its own network may be the reason."""
FAILURES_MAX = 3
"""A peer from which so many fetches of a variant failed in a row serves it no more, until it reports it anew."""


def choose(
    free: Sequence[Iterable[WorkerId]],
    readers: int,
    failed: Collection[WorkerId],
    below: Collection[WorkerId] = (),
) -> WorkerId | None:
    """The source for a worker on whose host the files are not: the first free peer, "" for the origin, None to wait.

    free: peers in groups, the best first: holders by how many uploads they serve, then those that still fetch, by how
    far they are from the origin. readers: of the origin now. failed: peers that have failed this worker; no more than
    `PEERS_TRIED_MAX`, so few are passed over. below: those that fetch through this worker, which must not fetch from
    them.
    """
    if len(failed) < PEERS_TRIED_MAX:
        for peers in free:
            for peer in peers:
                if peer not in failed and peer not in below:
                    return peer
    return "" if readers < ORIGIN_READERS else None
