"""Who fetches which variant's files from where, and who waits for its turn: the manager's belief about staging.

Part of the manager's machine: `scheduler` hands it what happened, it names sources (`policy/sources`). Workers of one
host share that machine's files, so at most one of them is in the queue or fetches; the others wait for it and then find
the files on their disk. Every fetch has a deadline, and whoever waits does so for a fetch. An event costs the same,
however many workers there are.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice

from pilotlight.core.decisions import ManagerDecision, NameSource
from pilotlight.core.model import VariantId, Worker, WorkerId
from pilotlight.core.policy.sources import DEPTH_MAX, FAILURES_MAX, FAN_OUT, ORIGIN_READERS, choose

FETCH_S_MAX = 1900.0
"""Without a word of it, a fetch counts as over after so long. A worker gives up sooner (`files.LOAD_S_MAX`)."""
LOOK_AHEAD = 8
"""So many of a queue may be passed over whom the free sources have failed."""

Ids = dict[WorkerId, None]
"""A set that keeps its order: what is decided must not depend on how strings hash."""


@dataclass(slots=True)
class Fetch:
    """A worker that was named a source. `slot`: whose place it takes, "" for the origin's; None: its source is lost.
    depth: how many machines what comes to it has passed, itself included."""

    worker_id: WorkerId
    variant_id: VariantId
    source: WorkerId
    until_s: float
    slot: WorkerId | None
    depth: int


@dataclass(slots=True)
class Member:
    """A worker, and the variants whose files it has, wants or failed to get."""

    host: str
    serves: bool
    leaving: bool = False
    variants: dict[VariantId, None] = field(default_factory=dict[VariantId, None])


def _groups(count: int) -> tuple[OrderedDict[WorkerId, None], ...]:
    return tuple(OrderedDict() for _ in range(count))


@dataclass(slots=True)
class Spread:
    """How far the files of one variant have come."""

    here: dict[str, Ids] = field(default_factory=dict[str, Ids])
    """By host, the workers that have them staged."""
    askers: dict[str, Ids] = field(default_factory=dict[str, Ids])
    """By host, the workers that want them; the first is in the queue or fetches, the others wait for it."""
    queue: OrderedDict[WorkerId, None] = field(default_factory=OrderedDict[WorkerId, None])
    holders: Ids = field(default_factory=Ids)
    """Workers that serve them to others."""
    passing: dict[WorkerId, int] = field(default_factory=dict[WorkerId, int])
    """Workers that fetch them and serve others meanwhile, with their depth."""
    remote: Ids = field(default_factory=Ids)
    """Workers that can't read the origin's folder: they fetch from it as from a peer."""
    free: tuple[OrderedDict[WorkerId, None], ...] = field(default_factory=lambda: _groups(FAN_OUT))
    """Holders by how many uploads they serve, longest unchanged first; those with `FAN_OUT` are in none."""
    free_passing: tuple[OrderedDict[WorkerId, None], ...] = field(default_factory=lambda: _groups(DEPTH_MAX))
    """Those of `passing` that serve less than `FAN_OUT`, by depth, the nearest to the origin first."""
    uploads: dict[WorkerId, Ids] = field(default_factory=dict[WorkerId, Ids])
    """By source, the origin ("") among them, who fetches from it."""
    failed: dict[WorkerId, Ids] = field(default_factory=dict[WorkerId, Ids])
    """By worker, the peers that failed it."""
    failures: dict[WorkerId, int] = field(default_factory=dict[WorkerId, int])
    """By holder, how many fetches from it failed since one did not."""


class Fetches:
    """Names sources. `begin` opens each step of the scheduler that owns it."""

    def __init__(self) -> None:
        self._members: dict[WorkerId, Member] = {}
        self._spreads: dict[VariantId, Spread] = {}
        self._fetches: OrderedDict[tuple[VariantId, WorkerId], Fetch] = OrderedDict()
        """Those whose deadline is next come first."""
        self._out: list[ManagerDecision] = []
        self._now = 0.0
        self._ticked_s = 0.0

    def begin(self, out: list[ManagerDecision], now: float) -> None:
        """A step begins: the list that its decisions go to."""
        self._out = out
        self._now = now

    # --- workers

    def joined(self, worker_id: WorkerId, host: str, staged: Iterable[VariantId], *, serves: bool) -> None:
        """A worker is there, with what it has staged; what was known of it before is void."""
        self.lost(worker_id)
        self._members[worker_id] = Member(host, serves)
        for variant_id in staged:
            self.made(worker_id, variant_id)

    def lost(self, worker_id: WorkerId) -> None:
        """A worker is gone. Who fetched from it will say that this failed."""
        member = self._members.get(worker_id)
        if member is None:
            return
        for variant_id in list(member.variants):
            spread = self._spreads[variant_id]
            self._withdraw(variant_id, worker_id)
            self._not_here(spread, member.host, worker_id)
            for asker in spread.uploads.pop(worker_id, ()):
                self._fetches[variant_id, asker].slot = None
                spread.passing.pop(asker, None)  # nothing comes to it any more
                self._regroup(spread, asker)
            spread.failed.pop(worker_id, None)
            self._serve(variant_id)
            self._tidy(variant_id, worker_id)
        del self._members[worker_id]

    def leaving(self, worker_id: WorkerId) -> None:
        """A worker drains: it is named to nobody, and starts nothing."""
        member = self._members[worker_id]
        member.leaving = True
        for variant_id in list(member.variants):
            self._serves_not(self._spreads[variant_id], worker_id)
            if (variant_id, worker_id) not in self._fetches:
                self._withdraw(variant_id, worker_id)
            self._serve(variant_id)
            self._tidy(variant_id, worker_id)

    # --- files

    def asked(self, worker_id: WorkerId, variant_id: VariantId, *, remote: bool = False) -> None:
        """A worker wants a variant's files; remote: it can't read the origin's folder, so a peer may serve it better,
        one that found the same before it above all."""
        member = self._members.get(worker_id)
        if member is None or member.leaving:
            return
        spread = self._spreads.setdefault(variant_id, Spread())
        member.variants[variant_id] = None
        fetch = self._fetches.get((variant_id, worker_id))
        looked_in_vain = remote and worker_id not in spread.remote and fetch is not None and not fetch.source
        if remote:
            spread.remote[worker_id] = None
        if fetch is not None and fetch.slot is not None and not looked_in_vain:
            self._out.append(NameSource(worker_id, variant_id, fetch.source))
            self._pass_on(spread, fetch)
            self._serve(variant_id)
            return
        if fetch is not None:
            self._withdraw(variant_id, worker_id)
        if member.host in spread.here:
            self._out.append(NameSource(worker_id, variant_id, ""))
        else:
            spread.askers.setdefault(member.host, {})[worker_id] = None
            self._queue_first(variant_id, member.host)
            if worker_id in spread.queue and worker_id in spread.failed:  # it has waited for its turn once
                spread.queue.move_to_end(worker_id, last=False)
        self._serve(variant_id)
        self._tidy(variant_id, worker_id)

    def made(self, worker_id: WorkerId, variant_id: VariantId) -> None:
        """A worker has a variant's files staged: others of its host find them, and peers may fetch them."""
        member = self._members[worker_id]
        member.variants[variant_id] = None
        spread = self._spreads.setdefault(variant_id, Spread())
        fetch = self._withdraw(variant_id, worker_id)
        if fetch is not None:
            spread.failures.pop(fetch.source, None)
        spread.failed.pop(worker_id, None)
        spread.here.setdefault(member.host, {})[worker_id] = None
        in_vain = spread.failures.pop(worker_id, 0) >= FAILURES_MAX  # while it fetched: nobody reaches it
        if member.serves and not member.leaving and not in_vain:
            spread.holders[worker_id] = None
            self._regroup(spread, worker_id)
        for waiting in list(spread.askers.get(member.host, ())):
            if (variant_id, waiting) not in self._fetches:
                self._withdraw(variant_id, waiting, promote=False)
                self._out.append(NameSource(waiting, variant_id, ""))
                self._tidy(variant_id, waiting)
        self._serve(variant_id)

    def gone(self, worker_id: WorkerId, variant_id: VariantId) -> None:
        """A worker has a variant's files no more."""
        spread = self._spreads.get(variant_id)
        if spread is not None:
            self._not_here(spread, self._members[worker_id].host, worker_id)
            self._tidy(variant_id, worker_id)

    def failed(self, worker_id: WorkerId, variant_id: VariantId, source: WorkerId) -> None:
        """A worker could not stage a variant's files from a peer, or from the origin (""), or wants them no more."""
        spread = self._spreads.get(variant_id)
        if spread is None or worker_id not in self._members:
            return
        self._withdraw(variant_id, worker_id)
        if not source:
            spread.failed.pop(worker_id, None)
        else:
            self._members[worker_id].variants[variant_id] = None
            spread.failed.setdefault(worker_id, {})[source] = None
            if source in spread.holders or source in spread.passing:
                spread.failures[source] = spread.failures.get(source, 0) + 1
                if spread.failures[source] >= FAILURES_MAX:
                    self._serves_not(spread, source)
        self._serve(variant_id)
        self._tidy(variant_id, worker_id)

    def tick(self) -> None:
        """Fetches of which nothing was heard for too long are over."""
        self._ticked_s = self._now
        while self._fetches:
            (variant_id, worker_id), fetch = next(iter(self._fetches.items()))
            if fetch.until_s > self._now:
                return
            self._withdraw(variant_id, worker_id)
            self._serve(variant_id)
            self._tidy(variant_id, worker_id)

    # --- the queue

    def _serve(self, variant_id: VariantId) -> None:
        """Name sources to those whose turn it is."""
        spread = self._spreads[variant_id]
        while (turn := self._next(spread)) is not None:
            worker_id, source = turn
            del spread.queue[worker_id]
            depth = spread.passing.get(source, 0) + 1
            fetch = Fetch(worker_id, variant_id, source, self._now + FETCH_S_MAX, source, depth)
            self._fetches[variant_id, worker_id] = fetch
            spread.uploads.setdefault(source, {})[worker_id] = None
            self._regroup(spread, source)
            self._pass_on(spread, fetch)
            self._out.append(NameSource(worker_id, variant_id, source))

    @staticmethod
    def _next(spread: Spread) -> tuple[WorkerId, WorkerId] | None:
        readers = len(spread.uploads.get("", ()))
        for worker_id in islice(spread.queue, LOOK_AHEAD):
            failed = spread.failed.get(worker_id, {})
            below = _below(spread, worker_id) if worker_id in spread.uploads else ()
            source = choose((*spread.free, *spread.free_passing), readers, failed, below)
            if source is not None:
                return worker_id, source
        return None

    def _withdraw(self, variant_id: VariantId, worker_id: WorkerId, *, promote: bool = True) -> Fetch | None:
        """A worker neither waits nor fetches any more; another of its host may have to. Returns what it fetched."""
        spread, host = self._spreads[variant_id], self._members[worker_id].host
        spread.queue.pop(worker_id, None)
        askers = spread.askers.get(host, {})
        askers.pop(worker_id, None)
        fetch = self._fetches.pop((variant_id, worker_id), None)
        if spread.passing.pop(worker_id, None) is not None:
            self._regroup(spread, worker_id)
        if fetch is not None and fetch.slot is not None:
            uploads = spread.uploads[fetch.slot]
            del uploads[worker_id]
            if not uploads:
                del spread.uploads[fetch.slot]
            self._regroup(spread, fetch.slot)
        if not askers:
            spread.askers.pop(host, None)
        elif promote:
            self._queue_first(variant_id, host)
        return fetch

    def _queue_first(self, variant_id: VariantId, host: str) -> None:
        """The first of a host stands for it."""
        spread = self._spreads[variant_id]
        first = next(iter(spread.askers[host]))
        if (variant_id, first) not in self._fetches:
            spread.queue.setdefault(first)

    # --- who serves

    @staticmethod
    def _regroup(spread: Spread, source: WorkerId) -> None:
        for group in (*spread.free, *spread.free_passing):
            group.pop(source, None)
        uploads = len(spread.uploads.get(source, ()))
        if source in spread.holders and uploads < FAN_OUT:
            spread.free[uploads][source] = None
        depth = spread.passing.get(source, 0)
        if 0 < depth <= DEPTH_MAX and uploads < FAN_OUT:
            spread.free_passing[depth - 1][source] = None

    def _pass_on(self, spread: Spread, fetch: Fetch) -> None:
        """Who fetches over the network can serve what has come; who reads a folder knows no digest before its end."""
        member = self._members[fetch.worker_id]
        given_up = spread.failures.get(fetch.worker_id, 0) >= FAILURES_MAX
        if member.serves and not member.leaving and not given_up and (fetch.source or fetch.worker_id in spread.remote):
            spread.passing[fetch.worker_id] = fetch.depth
            self._regroup(spread, fetch.worker_id)

    def _serves_not(self, spread: Spread, worker_id: WorkerId) -> None:
        if worker_id not in spread.passing:
            spread.failures.pop(worker_id, None)
        spread.holders.pop(worker_id, None)
        spread.passing.pop(worker_id, None)
        self._regroup(spread, worker_id)

    def _not_here(self, spread: Spread, host: str, worker_id: WorkerId) -> None:
        self._serves_not(spread, worker_id)
        here = spread.here.get(host, {})
        here.pop(worker_id, None)
        if not here:
            spread.here.pop(host, None)

    def _tidy(self, variant_id: VariantId, worker_id: WorkerId) -> None:
        """Forget that a worker has to do with a variant, and the variant, where that is over."""
        spread, member = self._spreads[variant_id], self._members[worker_id]
        held = worker_id in spread.here.get(member.host, ()) or worker_id in spread.askers.get(member.host, ())
        if not held and worker_id not in spread.failed:
            member.variants.pop(variant_id, None)
            spread.failures.pop(worker_id, None)
            spread.remote.pop(worker_id, None)
        if not (spread.here or spread.askers or spread.failed):
            del self._spreads[variant_id]

    # --- what must hold

    def check(self, workers: Mapping[WorkerId, Worker]) -> None:
        """Assert every invariant; `workers` are those believed to be there."""
        assert self._members.keys() == workers.keys()
        for (variant_id, worker_id), fetch in self._fetches.items():
            assert (fetch.variant_id, fetch.worker_id) == (variant_id, worker_id)
            assert worker_id in workers, f"{worker_id} is lost and fetches {variant_id}"
            assert fetch.until_s > self._ticked_s, f"{worker_id} may fetch {variant_id} for ever"
        for variant_id, spread in self._spreads.items():
            self._check(variant_id, spread)
        held = {(worker_id, variant_id) for worker_id, worker in workers.items() for variant_id in worker.staged}
        here = {(w, v) for v, spread in self._spreads.items() for ids in spread.here.values() for w in ids}
        assert held == here, f"staged are {held}, for others to fetch {here}"

    def _check(self, variant_id: VariantId, spread: Spread) -> None:
        fetches = {w: fetch for (v, w), fetch in self._fetches.items() if v == variant_id}
        slots = {(fetch.slot, w) for w, fetch in fetches.items() if fetch.slot is not None}
        assert slots == {(source, w) for source, ids in spread.uploads.items() for w in ids}
        for source, ids in spread.uploads.items():
            most = FAN_OUT if source else ORIGIN_READERS
            assert 0 < len(ids) <= most, f"{len(ids)} workers fetch {variant_id} from {source or 'its origin'}"
        for holder in spread.holders:
            uploads = len(spread.uploads.get(holder, ()))
            groups = [n for n, group in enumerate(spread.free) if holder in group]
            assert groups == [uploads][: uploads < FAN_OUT], f"{holder} serves {uploads} and counts as {groups}"
            member = self._members[holder]
            assert member.serves and not member.leaving and holder in spread.here[member.host]  # noqa: PT018
        assert not (set().union(*spread.free) - spread.holders.keys())
        assert not (spread.passing.keys() & spread.holders.keys())
        for worker_id, depth in spread.passing.items():
            fetch, uploads = fetches[worker_id], len(spread.uploads.get(worker_id, ()))
            assert fetch.depth == depth
            groups = [n for n, group in enumerate(spread.free_passing, 1) if worker_id in group]
            assert groups == [depth][: uploads < FAN_OUT and depth <= DEPTH_MAX], f"{worker_id} counts as {groups}"
            assert self._members[worker_id].serves and not self._members[worker_id].leaving  # noqa: PT018
        assert not (set().union(*spread.free_passing) - spread.passing.keys())
        for worker_id in fetches:
            assert worker_id not in _below(spread, worker_id), (
                f"{variant_id}: {worker_id} fetches from itself in the end"
            )
        firsts = {next(iter(ids)) for ids in spread.askers.values()}
        assert spread.queue.keys() | fetches.keys() == firsts, f"{variant_id}: nobody stands for a host, or two do"
        assert not spread.queue.keys() & fetches.keys()
        for host, ids in spread.askers.items():
            assert all(self._members[w].host == host for w in ids)
        assert self._next(spread) is None, f"{variant_id}: someone waits though a source is free"


def _below(spread: Spread, worker_id: WorkerId) -> Ids:
    """Who fetches from a worker, directly or through others."""
    below: Ids = {}
    waiting = [worker_id]
    while waiting:
        for fetcher in spread.uploads.get(waiting.pop(), ()):
            if fetcher not in below:
                below[fetcher] = None
                waiting.append(fetcher)
    return below
