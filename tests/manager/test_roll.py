"""Who is let in, who is told to leave, and that people hear of it once."""

from __future__ import annotations

from pilotlight.manager.roll import Roll
from pilotlight.messages import Drain, Join, TurnedAway
from pilotlight.views import CacheView
from pilotlight.wire import VERSION, DeviceSpec, Environment

OWN = Environment(python="3.12.4", release="0.2.0")
CPU = DeviceSpec(id="cpu", kind="cpu", type="cpu", memory_bytes=1)
OTHER = Environment(python="3.11.1", release="0.2.0", missing={"transformers": ["torch"]})


def join(worker: str, environment: Environment | None = OWN, *, version: int = VERSION, host: str = "h") -> Join:
    cache = CacheView(path="/c", chosen_by="--cache", free_bytes=1)
    return Join(version=version, worker=worker, pid=1, host=host, devices=[CPU], environment=environment, cache=cache)


def test_a_worker_of_no_use_is_turned_away_and_spoken_of_once_for_its_host() -> None:
    roll = Roll(OWN)
    first = roll.take(join("w-1", OTHER), ours=False)
    assert isinstance(first.no, TurnedAway)
    assert first.no.reason.startswith("w-1 on h is of no use to this pool: it has Python 3.11.1")
    assert [level for level, _ in first.notes] == ["warning"]
    assert roll.is_outside("w-1")
    assert roll.said("w-1") is None
    assert roll.take(join("w-1", OTHER), ours=False).notes == ()
    assert roll.take(join("w-2", OTHER), ours=False).notes == ()
    assert roll.take(join("w-3", OTHER, host="another"), ours=False).notes != ()


def test_one_that_the_pool_started_itself_stays_so_that_jobs_end_with_the_reason() -> None:
    answer = Roll(OWN).take(join("w", OTHER), ours=True)
    assert answer.no is None
    assert set(answer.verdict.lacks["cpu"]) == {"python", "transformers"}


def test_a_worker_of_another_version_drains_and_comes_back_upgraded() -> None:
    roll = Roll(OWN)
    answer = roll.take(join("w", Environment(release="0.1.0"), version=VERSION - 1), ours=True)
    assert answer.no == Drain(grace_s=0.0)
    ((level, text),) = answer.notes
    assert level == "warning"
    assert text.endswith("upgrade pilotlight to 0.2.0 where the worker runs")
    assert roll.is_outside("w")
    assert roll.take(join("w"), ours=True).no is None
    assert not roll.is_outside("w")


def test_what_is_missing_is_no_warning_and_differences_are() -> None:
    roll = Roll(OWN)
    bare = Environment(python="3.12.1", release="0.2.0", missing={"transformers": ["torch"]})
    assert [level for level, _ in roll.take(join("w-1", bare), ours=True).notes] == ["debug"]
    with_torch = Environment(python="3.12.1", release="0.2.0", packages={"torch": "2.11.0"})
    other = Environment(python="3.12.1", release="0.2.0", packages={"torch": "2.10.0"})
    assert roll.take(join("w-2", with_torch), ours=True).notes == ()
    ((level, text),) = roll.take(join("w-3", other), ours=True).notes
    assert level == "warning"
    assert text.startswith("w-3: it has torch 2.10.0 and w-2 has 2.11.0")
    roll.leave("w-2")
    assert roll.take(join("w-4", other, host="another"), ours=True).notes == ()


def test_the_other_one_of_two_names_is_not_cut_out_of_a_note() -> None:
    """`w-1` is in `w-10` too."""
    roll = Roll(OWN)
    roll.take(join("w-10", Environment(python="3.12.1", packages={"torch": "2.11.0"})), ours=True)
    old = Environment(python="3.12.1", packages={"torch": "2.10.0"})
    assert len(roll.take(join("w-1", old), ours=True).notes) == 1
    assert len(roll.take(join("w-2", old), ours=True).notes) == 0
