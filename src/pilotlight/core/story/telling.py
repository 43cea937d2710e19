"""From a run's records to stories: `survey` follows them once, `tell` tells of one subject, `overview` of all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from pilotlight.core.story.cast import Cast
from pilotlight.core.story.context import ContextTeller
from pilotlight.core.story.ends import with_ends
from pilotlight.core.story.job import JobTeller
from pilotlight.core.story.lease import LeaseTeller
from pilotlight.core.story.overview import Overview
from pilotlight.core.story.records import Began, Gap, Line, Named, Record, Step, Story
from pilotlight.core.story.row import RowTeller
from pilotlight.core.story.scene import Moment, Scene
from pilotlight.core.story.subjects import ContextSubject, JobSubject, LeaseSubject, RowSubject, Subject, WorkerSubject
from pilotlight.core.story.words import count_text
from pilotlight.core.story.worker import WorkerTeller


class Teller(Protocol):
    """Takes moments, in order, and makes a story of those that matter to it."""

    def take(self, moment: Moment) -> None:
        """One more moment."""
        ...


def survey(records: Iterable[Record]) -> Cast:
    """Everything that has a name in the records; see `subjects.find`."""
    cast = Cast()
    for record in records:
        match record:
            case Step():
                cast.take(record)
            case Named(names=names):
                cast.variants.update(names)
            case _:
                pass
    return cast


def tell(records: Iterable[Record], subject: Subject) -> Story:
    """The story of one subject. It says where records are missing, and where another manager went on."""
    scene = Scene()
    teller = _teller(scene, subject)
    between = _follow(records, scene, teller)
    story = teller.story()
    if story.lines:
        story.lines = sorted([*story.lines, *between], key=lambda line: line.at_s)
    return story


def overview(records: Iterable[Record]) -> list[Story]:
    """The whole run, in sections."""
    scene = Scene()
    teller = Overview(scene)
    for line in _follow(records, scene, teller):
        teller.trouble(line)
    return teller.stories()


def _teller(scene: Scene, subject: Subject) -> RowTeller | LeaseTeller | JobTeller | WorkerTeller | ContextTeller:
    match subject:
        case RowSubject(job_id, index):
            return RowTeller(scene, job_id, index)
        case LeaseSubject(lease_id):
            return LeaseTeller(scene, lease_id)
        case JobSubject(job_id):
            return JobTeller(scene, job_id)
        case WorkerSubject(worker_id, device_id):
            return WorkerTeller(scene, worker_id, device_id)
        case ContextSubject(variant_id):
            return ContextTeller(scene, variant_id)


def _follow(records: Iterable[Record], scene: Scene, teller: Teller) -> list[Line]:
    """Show a teller all moments. Returns what every story has to say between them."""
    between: list[Line] = []
    managers = 0
    for record in with_ends(records):
        match record:
            case Step():
                teller.take(scene.take(record))
            case Began(at_s, epoch, again=again):
                scene.began()
                managers += 1
                if again:
                    between.append(Line(at_s, "(what was before is no longer in the log)"))
                elif managers > 1:
                    between.append(Line(at_s, f"(a new manager, number {epoch}, took over)"))
            case Named(names=names):
                scene.learn(names)
            case Gap(at_s, lost, reason):
                between.append(Line(at_s, f"({count_text(lost, 'step')} missing: {reason})"))
    return between
