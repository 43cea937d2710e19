"""What displays are told of contexts and where they are."""

from __future__ import annotations

from pilotlight.core import events as ev
from pilotlight.manager import views
from pilotlight.manager.facts import variant_of
from pilotlight.manager.jobs import variant_id_of
from pilotlight.manager.ledger import NAMES_MAX, Ledger
from pilotlight.manager.loop import Manager
from pilotlight.messages import Copy, Join, Reported, Resident
from pilotlight.views import OTHERS
from pilotlight.wire import Context
from tests.manager.test_loop import CONTEXT, CPU, VARIANT, Link, played, stream_job

MODEL = Context(runtime="echo", name="model", identity="m", model_path="/model")


def test_a_context_is_shown_with_all_its_residences() -> None:
    def play(manager: Manager, link: Link) -> None:
        copies = [
            Copy(variant=variant_id_of(MODEL), level=level, bytes=size, took_s=0.5, context=MODEL)
            for level, size in (("parked", 10), ("staged", 20))
        ]
        link.say("w", Join(worker="w", pid=1, host="h", devices=[CPU], memory_bytes=100, copies=copies))
        stages = {"read": 1.0, "warm": 0.5}
        live = Resident(
            device="cpu", variant=VARIANT, replica="w.1", state="live", memory_bytes=7, load_s=1.5, stages=stages
        )
        stream_job(manager, [])
        link.say("w", Reported(resident=live))
        manager.put(ev.VariantPinned(variant_of(variant_id_of(MODEL), MODEL), on=True))
        echo, model = sorted(views.contexts(manager), key=lambda view: view.name)
        assert (echo.context, echo.jobs, echo.used, echo.idle_s, echo.pinned) == (CONTEXT.id, 1, 1, 0.0, False)
        (residence,) = echo.residences
        assert (residence.worker, residence.level, residence.device) == ("w", "live", "cpu")
        assert (residence.bytes, residence.took_s, residence.stages) == (7, 1.5, stages)
        assert (model.pinned, model.jobs, model.used) == (True, 0, 0)
        assert {(r.level, r.bytes, r.took_s) for r in model.residences} == {("parked", 10, 0.5), ("staged", 20, 0.5)}

    played(play)


def test_loads_count_once_and_an_inventory_not_at_all() -> None:
    def play(manager: Manager, link: Link) -> None:
        live = Resident(device="cpu", variant=VARIANT, replica="w.1", state="live", load_s=2.0, context=CONTEXT)
        link.say("w", Join(worker="w", pid=1, host="h", devices=[CPU], residents=[live]))
        link.say("w", Reported(resident=live))
        totals = manager.ledger.totals(manager.scheduler.state)
        assert (totals.loads, totals.load_s) == ({}, 0.0)
        fresh = Resident(device="cpu", variant=VARIANT, replica="w.2", state="live", load_s=2.0)
        for state in ("live", "asleep", "live"):
            link.say("w", Reported(resident=Resident(**{**fields(fresh), "state": state})))
        totals = manager.ledger.totals(manager.scheduler.state)
        assert (totals.loads, totals.load_s) == ({"echo": 2}, 4.0)  # it was loaded, and woke

    played(play)


def fields(resident: Resident) -> dict[str, object]:
    return {name: getattr(resident, name) for name in resident.__struct_fields__}


def test_loads_of_contexts_without_end_are_summed_up() -> None:
    ledger = Ledger()
    for n in range(3 * NAMES_MAX):
        ledger.resident("w", Resident(device="cpu", variant="v", replica=f"w.{n}", state="live"), f"context {n}")
    assert len(ledger.loads) == NAMES_MAX
    assert sum(ledger.loads.values()) == 3 * NAMES_MAX
    assert f"context {3 * NAMES_MAX - 1}" in ledger.loads
    assert ledger.loads[OTHERS] == 2 * NAMES_MAX + 1
