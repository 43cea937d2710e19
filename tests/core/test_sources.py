"""From where files are staged: peers by a tree, few readers at the origin, and nobody waits for ever."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from pilotlight.core import decisions as do
from pilotlight.core import events as ev
from pilotlight.core.agent import Agent
from pilotlight.core.allocation import Options
from pilotlight.core.fetches import FETCH_S_MAX
from pilotlight.core.files import AGAIN_S, ALONE_S, ASK_S, TRIES_MAX
from pilotlight.core.model import Device, Variant
from pilotlight.core.policy.sources import FAILURES_MAX, FAN_OUT, ORIGIN_READERS, PEERS_TRIED_MAX, choose
from pilotlight.core.scheduler import Scheduler
from pilotlight.core.story.records import Began, Step
from pilotlight.core.story.subjects import WorkerSubject
from pilotlight.core.story.telling import tell
from pilotlight.core.transitions import Level
from tests.core.virtual import Virtual
from tests.core.world import World, run_quietly

COPY_S = 10.0
V = Variant("v", "v", 10, has_files=True)


def test_the_least_busy_peer_is_chosen_then_the_origin_then_nothing() -> None:
    assert choose([["a", "b"], ["c"]], 0, ()) == "a"
    assert choose([["a"], ["c"]], 0, {"a"}) == "c"
    assert choose([[], []], ORIGIN_READERS - 1, ()) == ""
    assert choose([["a"], []], ORIGIN_READERS, {"a"}) is None
    assert choose([["d"], []], 0, [f"p{n}" for n in range(PEERS_TRIED_MAX)]) == "", "its own network may be the reason"


def spread_over(hosts: int, *, per_host: int = 1, serves: bool = True) -> Virtual:
    """All workers stage one variant."""
    world = Virtual(Options(keep_alive_s=-1.0))
    for n in range(hosts * per_host):
        world.add_worker(host=f"host-{n % hosts}", serves=serves, copy_s=COPY_S)
    world.pin("v", has_files=True)
    return world


def staged(world: Virtual) -> int:
    return sum("v" in worker.staged for worker in world.scheduler.state.workers.values())


def busiest(world: Virtual) -> Counter[str]:
    """By source, the most copies that were made from it at the same time."""
    fetches = [(began_s, source) for began_s, _, _, level, source in world.copies if level is Level.STAGED]
    most: Counter[str] = Counter()
    for at_s, source in fetches:
        beside = sum(other == source and began_s <= at_s < began_s + COPY_S for began_s, other in fetches)
        most[source] = max(most[source], beside)
    return most


def test_copies_grow_as_a_tree_and_the_origin_is_read_by_few() -> None:
    hosts = 64
    world = spread_over(hosts)
    world.run(lambda: staged(world) == hosts)
    assert world.now <= COPY_S * math.log2(hosts) + 1.0
    most = busiest(world)
    assert most.pop("") <= ORIGIN_READERS
    assert most
    assert max(most.values()) <= FAN_OUT
    reads = sum(not source for _, _, _, _, source in world.copies)
    assert reads <= 4 * ORIGIN_READERS, "the origin is one source among many, round by round"


def test_without_peers_that_serve_files_the_origin_is_read_by_few_at_once() -> None:
    world = spread_over(12, serves=False)
    world.run(lambda: staged(world) == 12)
    assert busiest(world) == {"": ORIGIN_READERS}
    assert COPY_S * 12 / ORIGIN_READERS <= world.now <= COPY_S * 12 / ORIGIN_READERS + 1.0


def test_workers_of_a_host_share_one_fetch() -> None:
    world = spread_over(1, per_host=5)
    world.run(lambda: staged(world) >= 1)
    first = [name for _, name, _, _, _ in world.copies]
    assert first == ["worker-1"]
    world.run(lambda: staged(world) == 5)
    assert {source for _, _, _, _, source in world.copies} == {""}
    assert all(began_s >= COPY_S for began_s, name, _, _, _ in world.copies if name != "worker-1")


def test_fetches_from_a_lost_worker_go_on_from_another_source() -> None:
    world = spread_over(30)
    world.run(lambda: any(source for _, _, _, _, source in world.copies))
    lost = next(source for _, _, _, _, source in world.copies if source)
    victims = [name for _, name, _, _, source in world.copies if source == lost]
    world.kill_worker(lost)
    world.run(lambda: staged(world) == 29, within_s=8 * COPY_S)
    for victim in victims:
        sources = [source for _, name, _, level, source in world.copies if name == victim and level is Level.STAGED]
        assert sources[0] == lost
        assert lost not in sources[1:]


@pytest.mark.parametrize("rejoins", [False, True])
def test_a_lost_answer_is_asked_for_again(rejoins: bool) -> None:
    world = World()
    world.with_files = {"v"}
    name = world.add_worker()
    job = world.submit(5)
    worker = world.workers[name]
    run_until_asked(world, name)
    world.cut(name) if rejoins else world.lose_answers(name)
    assert not list(worker.agent.residences.made_copies())
    assert not worker.copying
    run_quietly(world, lambda: world.jobs[job].ended, seconds=1.0)
    assert world.now >= (0.0 if rejoins else ASK_S)
    world.check_outputs()


def run_until_asked(world: World, name: str) -> None:
    """Until the answer to a worker's question is on its way."""
    worker = world.workers[name]
    while not any(isinstance(event, ev.SourceNamed) for event in worker.down):
        world.deliver(name, "up")
        if not any(isinstance(event, ev.SourceNamed) for event in worker.down):
            world.deliver(name, "down")


# --- the worker's side


def asking() -> Agent:
    """A worker that wants a variant and has asked from where to stage it."""
    agent = Agent("w", (Device("d", "gpu", 15),), 1e9)
    agent.handle(ev.ManagerFound(2), 0.0)
    out = agent.handle(ev.WantsChanged(2, 1, (("d", V, Level.LIVE),)), 0.0)
    assert out == [do.AskSource("v")]
    return agent


def test_a_worker_stages_from_where_this_epochs_manager_says() -> None:
    agent = asking()
    assert agent.handle(ev.SourceNamed(1, "v", "old"), 0.0) == []
    assert agent.handle(ev.SourceNamed(2, "v", "peer"), 0.0) == [do.MakeCopy("v", Level.STAGED, "peer")]
    assert agent.handle(ev.SourceNamed(2, "v", "other"), 0.0) == [], "one answer is enough"


def test_after_a_peer_another_source_is_asked_for_and_after_the_origin_none() -> None:
    agent = asking()
    agent.handle(ev.SourceNamed(2, "v", "peer"), 0.0)
    out = agent.handle(ev.CopyFailed("v", Level.STAGED, "no answer"), 1.0)
    assert out == [do.SendCopyFailed("v", Level.STAGED, "peer", "no answer"), do.AskSource("v")]
    agent.handle(ev.SourceNamed(2, "v", ""), 2.0)
    failed, start, _ = agent.handle(ev.CopyFailed("v", Level.STAGED, "unreadable"), 3.0)
    assert failed == do.SendCopyFailed("v", Level.STAGED, "", "unreadable")
    assert isinstance(start, do.StartReplica)
    assert start.origin == "cold"


def test_what_is_no_longer_wanted_is_not_fetched_when_its_turn_comes() -> None:
    agent = asking()
    agent.handle(ev.WantsChanged(2, 2, ()), 1.0)
    (said,) = agent.handle(ev.SourceNamed(2, "v", "peer"), 2.0)
    assert isinstance(said, do.SendCopyFailed)
    assert said.source == "", "no peer is to blame"


def test_without_an_answer_a_worker_asks_again_and_at_last_reads_the_origin() -> None:
    agent = asking()
    assert agent.handle(ev.Tick(), ASK_S / 2) == []
    assert agent.handle(ev.Tick(), ASK_S) == [do.AskSource("v")]
    agent.handle(ev.ManagerLost(), ASK_S)
    assert agent.handle(ev.ManagerFound(3), ASK_S + 1) == [do.AskSource("v")]
    assert agent.handle(ev.Tick(), ALONE_S) == [do.MakeCopy("v", Level.STAGED)]


# --- the manager's side


class Desk:
    """A scheduler with workers on hosts of their own that ask for `v`; `named` are its answers, in order."""

    def __init__(self) -> None:
        self.now = 0.0
        self.scheduler = Scheduler()
        self.named: list[tuple[str, str]] = []

    def put(self, event: ev.ManagerEvent) -> None:
        decisions = self.scheduler.handle(event, self.now)
        self.named += [(d.worker_id, d.source) for d in decisions if isinstance(d, do.NameSource)]
        self.scheduler.check()

    def join(self, *names: str, host: str = "", serves: bool = True, has: bool = False) -> None:
        copies = (ev.CopyFact("v", Level.STAGED, 10),) if has else ()
        for name in names:
            joined = ev.WorkerJoined(
                name, 1, host or name, (), copies=copies, variants=(V,) if has else (), serves_files=serves
            )
            self.put(joined)

    def ask(self, *names: str) -> list[tuple[str, str]]:
        """What is answered at once."""
        before = len(self.named)
        for name in names:
            self.put(ev.SourceAsked(name, "v"))
        return self.named[before:]

    def made(self, name: str) -> None:
        self.put(ev.CopyReported(name, ev.CopyFact("v", Level.STAGED, 10)))

    def failed(self, name: str, source: str) -> None:
        self.put(ev.CopyFailedAt(name, "v", source))

    def pass_s(self, seconds: float) -> None:
        """Time passes, and all workers are alive."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + 5.0)
            for name in self.scheduler.state.workers:
                self.put(ev.WorkerHeard(name, 0))
            self.put(ev.Tick())


READERS = [f"r{n}" for n in range(ORIGIN_READERS)]


def crowded(*waiting: str, serve: bool = True) -> Desk:
    """The origin has all the readers that it may have, and these wait."""
    desk = Desk()
    desk.join(*READERS)
    desk.join(*waiting, serves=serve)
    assert desk.ask(*READERS) == [(name, "") for name in READERS]
    assert desk.ask(*waiting) == []
    return desk


def test_who_waits_is_served_in_turn_as_places_become_free() -> None:
    desk = crowded("a", "b", "c", "d", serve=False)
    assert desk.ask("a") == [], "asking again changes nothing"
    desk.made("r0")
    assert desk.named[ORIGIN_READERS:] == [("a", "r0"), ("b", "r0"), ("c", "")]
    desk.failed("r1", "")
    assert desk.named[-1] == ("d", "")
    assert desk.ask("d") == [("d", "")], "the same answer, should the first be lost"


def test_who_fetches_passes_on_what_comes_to_a_tree_of_others() -> None:
    desk = Desk()
    names = [f"w{n}" for n in range(8)]
    desk.join(*names)
    desk.put(ev.SourceAsked("w0", "v", remote=True))
    assert desk.ask(*names[1:]) == [
        ("w1", "w0"),
        ("w2", "w0"),
        ("w3", "w1"),
        ("w4", "w2"),
        ("w5", "w1"),
        ("w6", "w2"),
        ("w7", "w3"),
    ]
    for name in names:
        desk.made(name)
    desk.join("late")
    assert desk.ask("late") == [("late", "w0")], "all of them are free again"


def test_who_reads_the_origins_folder_passes_on_nothing_before_it_has_it() -> None:
    desk = Desk()
    desk.join("a", "b", "c")
    assert desk.ask("a", "b") == [("a", ""), ("b", "")]
    desk.put(ev.SourceAsked("a", "v", remote=True))
    assert desk.named[-1] == ("a", ""), "it could not read it: the answer now says how to fetch it"
    assert desk.ask("c") == [("c", "a")]


def test_those_that_looked_at_the_origin_in_vain_fetch_from_the_first_that_did() -> None:
    desk = Desk()
    desk.join("a", "b", "c")
    assert desk.ask("a", "b", "c") == [("a", ""), ("b", ""), ("c", "")]
    for name in ("a", "b", "c"):
        desk.put(ev.SourceAsked(name, "v", remote=True))
    assert desk.named[3:] == [("a", ""), ("b", "a"), ("c", "a")]
    desk.put(ev.SourceAsked("a", "v", remote=True))
    assert desk.named[-1] == ("a", ""), "asking again changes nothing"


def test_a_peer_that_is_named_after_the_origin_is_blamed_if_it_fails() -> None:
    agent = Agent("w", (Device("d", "gpu", 15),), 1e9)
    variant = Variant("v", "v", 10, has_files=True)
    agent.handle(ev.WantsChanged(1, 1, (("d", variant, Level.LIVE),)), 0.0)
    agent.handle(ev.SourceNamed(1, "v", ""), 0.1)
    agent.handle(ev.SourceNamed(1, "v", "peer"), 0.2)
    (failed, *_) = agent.handle(ev.CopyFailed("v", Level.STAGED, "it is gone", remote=True), 0.3)
    assert isinstance(failed, do.SendCopyFailed)
    assert failed.source == "peer"


def test_nobody_fetches_from_who_fetches_through_it() -> None:
    desk = Desk()
    desk.join("a", "b", "c")
    desk.put(ev.SourceAsked("a", "v", remote=True))
    assert desk.ask("b", "c") == [("b", "a"), ("c", "a")]
    desk.failed("a", "")
    desk.failed("c", "a")
    assert desk.ask("a") == [("a", "")], "b would have it from a itself"
    assert desk.ask("c") == [("c", "b")]


def test_a_source_that_is_cut_is_left_by_who_fetches_through_it_and_gone_on_without() -> None:
    desk = Desk()
    desk.join("a", "b", "c")
    desk.put(ev.SourceAsked("a", "v", remote=True))
    desk.ask("b", "c")
    desk.put(ev.WorkerLost("a", "killed"))
    desk.failed("b", "a")
    desk.put(ev.SourceAsked("b", "v", remote=True))
    assert desk.named[-1] == ("b", "")
    desk.failed("c", "a")
    assert desk.ask("c") == [("c", "b")]


def test_a_peer_that_nobody_reaches_is_found_out_while_it_still_fetches() -> None:
    desk = Desk()
    names = [f"w{n}" for n in range(FAILURES_MAX + 2)]
    desk.join("shut", *names)
    desk.put(ev.SourceAsked("shut", "v", remote=True))
    for name in names[:FAILURES_MAX]:
        assert desk.ask(name) == [(name, "shut")]
        desk.failed(name, "shut")
    assert desk.ask(names[-1]) == [(names[-1], "")]
    desk.made("shut")
    assert desk.ask(names[-2])[0][1] != "shut", "that it has them now makes it no easier to reach"


def test_a_named_peer_that_fails_is_not_named_to_that_worker_again() -> None:
    desk = Desk()
    desk.join("p", has=True)
    desk.join("a", "b")
    assert desk.ask("a") == [("a", "p")]
    desk.failed("a", "p")
    assert desk.ask("a", "b") == [("a", ""), ("b", "p")]


def test_a_peer_that_fails_everybody_serves_no_more_until_it_says_again_that_it_has_the_files() -> None:
    desk = Desk()
    desk.join("p", has=True)
    names = [f"a{n}" for n in range(FAILURES_MAX + 2)]
    desk.join(*names)
    for name in names[:FAILURES_MAX]:
        assert desk.ask(name) == [(name, "p")]
        desk.failed(name, "p")
    assert desk.ask(names[-1]) == [(names[-1], "")]
    desk.made("p")
    assert desk.ask(names[-2]) == [(names[-2], "p")]


@pytest.mark.parametrize("how", ["lost", "rejoined", "drains", "overdue", "gone alone"])
def test_a_place_becomes_free_however_its_worker_ends(how: str) -> None:
    desk = crowded("a")
    match how:
        case "lost":
            desk.put(ev.WorkerLost("r0", "killed"))
        case "rejoined":
            desk.join("r0")
        case "drains":
            desk.put(ev.WorkerLeaving("r0", "asked"))
            desk.put(ev.WorkerLost("r0", "left"))
        case "overdue":
            desk.pass_s(FETCH_S_MAX + 5.0)
        case _:
            desk.made("r0")
    assert desk.named[ORIGIN_READERS:] == [("a", "r0" if how == "gone alone" else "")]


def test_a_lost_peer_takes_no_place_and_a_new_question_finds_another_source() -> None:
    desk = Desk()
    desk.join("p", has=True)
    desk.join("a")
    desk.ask("a")
    desk.put(ev.WorkerLost("p", "killed"))
    desk.join("p", has=True)
    desk.failed("a", "p")
    assert desk.ask("a") == [("a", "")]


def test_peers_that_drain_or_do_not_serve_files_are_not_named() -> None:
    desk = Desk()
    desk.join("p", has=True)
    desk.join("q", has=True, serves=False)
    desk.join("a")
    desk.put(ev.WorkerLeaving("p", "asked"))
    assert desk.ask("p") == []
    assert desk.ask("a") == [("a", "")]


def test_one_worker_of_a_host_fetches_and_the_next_takes_over_if_it_fails() -> None:
    desk = Desk()
    desk.join("a", "b", "c", host="one")
    assert desk.ask("a", "b", "c") == [("a", "")]
    desk.failed("a", "")
    assert desk.named[-1] == ("b", "")
    desk.put(ev.WorkerLost("b", "killed"))
    assert desk.named[-1] == ("c", "")
    assert desk.ask("a") == []
    desk.made("c")
    assert desk.named[-1] == ("a", ""), "it finds them on its disk"
    desk.put(ev.CopyReported("c", ev.CopyFact("v", Level.STAGED, 0)))
    assert desk.ask("c") == [("c", "")]


def test_where_nothing_else_can_be_read_the_origin_is_tried_again() -> None:
    agent = Agent("w", (Device("cpu", "cpu", 100, is_host=True),), 10.0, 100)
    agent.handle(ev.ManagerFound(1), 0.0)
    agent.handle(ev.WantsChanged(1, 1, (("cpu", V, Level.LIVE),)), 0.0)
    now, pauses = 0.0, []
    for _ in range(TRIES_MAX):
        assert agent.handle(ev.SourceNamed(1, "v", ""), now) == [do.MakeCopy("v", Level.STAGED, "")]
        out = agent.handle(ev.CopyFailed("v", Level.STAGED, "no answer", remote=True), now)
        assert out == [do.SendCopyFailed("v", Level.STAGED, "", "no answer")]
        asked, began_s = False, now
        while not asked:
            now += 0.5
            asked = do.AskSource("v") in agent.handle(ev.Tick(), now)
            assert now < began_s + ASK_S + 10
        pauses.append(now - began_s)
    assert pauses == [AGAIN_S * 2**n for n in range(TRIES_MAX)]
    agent.handle(ev.SourceNamed(1, "v", ""), now)
    out = agent.handle(ev.CopyFailed("v", Level.STAGED, "no answer", remote=True), now)
    assert do.AskSource("v") not in out
    assert isinstance(out[-1], do.MakeCopy), "a load from where the model is said to be will tell what is wrong"


# --- what is told


def test_a_story_says_from_where_a_copy_came() -> None:
    has = (ev.CopyFact("v", Level.STAGED, 10),)
    events = [
        ev.WorkerJoined("p", 1, "one", (), copies=has, variants=(V,), serves_files=True),
        ev.WorkerJoined("q", 1, "two", (), copies=has, variants=(V,), serves_files=True),
        ev.WorkerJoined("w", 1, "three", ()),
        ev.SourceAsked("w", "v"),
        ev.CopyFailedAt("w", "v", "p"),
        ev.SourceAsked("w", "v"),
        ev.CopyReported("w", ev.CopyFact("v", Level.STAGED, 10, 2.0)),
    ]
    scheduler = Scheduler()
    steps = [Step(n, n, event, tuple(scheduler.handle(event, n))) for n, event in enumerate(events, 1)]
    told = [line.text for line in tell([Began(0.0, 1, "test", "", 0.0), *steps], WorkerSubject("w")).lines]
    assert "could not fetch v from p" in told
    assert told[-1] == "a copy of v (10 B) is on disk after 2.0 s, from q"
