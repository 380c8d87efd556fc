"""The lifecycle: decisions, seams, acts, phases, and what happens to a training when a patch raises."""

from __future__ import annotations

import itertools
from datetime import timedelta
from types import SimpleNamespace

import pytest

from yolo_patches import __version__, facts, registry
from yolo_patches.agreement import RanksDisagreeError, exchange
from yolo_patches.errors import PatchesError
from yolo_patches.handover import Handover
from yolo_patches.lifecycle import Lifecycle
from yolo_patches.patch import Patch, Phase
from yolo_patches.plan import Change, Decision
from yolo_patches.seams import Act, Arguments, Live, ModelBuilt, OptimizerStep, Save, Step, Validation, ValLoader
from yolo_patches.selection import Selection, parse


def known(batch=8, ranks=1, task="detect", val_factor=2, given=None, **more):
    return facts.Facts(
        "ultralytics",
        "0",
        task,
        facts.Batch(batch, val_factor=val_factor),
        devices=facts.Devices(ranks),
        given=facts.Given(given or {}),
        **more,
    )


def make(spec="val-batch", missing=None, **more):
    return Lifecycle.of(known(**more), parse(spec, registry.specs()), missing)


def entry(lifecycle, name="val-batch"):
    return next(item for item in lifecycle.plan.to_dict()["patches"] if item["name"] == name)


def loader(batch, images=99):
    return SimpleNamespace(batch_size=batch, dataset=range(images))


def live(*loaders):
    return Live(val_loaders=loaders)


class Dummy(Patch):
    """A patch that notes what it is asked, and raises where it is told to."""

    name, summary, source, default, needs = "dummy", "for tests", "https://example.org", False, ()
    calls: list
    raises: str = ""

    def note(self, what):
        type(self).calls.append(f"{self.name} {what}")
        if type(self).raises == what:
            raise RuntimeError(f"{what} of {self.name}")

    def decide(self, facts):
        self.note("decide")
        return Decision("active", "always", (Change("x", 1, 2),))

    def handlers(self):
        return {ValLoader: self.handle, ModelBuilt: self.handle, Arguments: self.set}

    def around(self):
        return {Step: self.stand}

    def set(self, seam):
        self.note("arguments")
        seam.set("scale", 0.9)

    def handle(self, seam):
        self.note("handle")
        if isinstance(seam, ValLoader):
            seam.batch += 1

    def stand(self, act, proceed):
        self.note("before")
        result = proceed()
        self.note("after")
        return result

    def prove(self, live):
        self.note("prove")
        return ""

    def verify(self, live):
        self.note("verify")
        return True

    def undo(self):
        self.note("undo")
        return True

    def close(self):
        self.note("close")


@pytest.fixture
def dummies(monkeypatch):
    """Return a function that registers patches of the given phases and returns a lifecycle with them."""

    def register(*phases, ranks=1, raises="", told=None, selection=None, missing=None, **attributes):
        calls = []
        classes = {}
        for number, phase in enumerate(phases):
            name = f"p{number}"
            classes[name] = type(
                name, (Dummy,), {"name": name, "phase": phase, "calls": calls, "raises": raises, **attributes}
            )
        monkeypatch.setattr(registry, "patches", lambda: classes)
        chosen = Selection("all", {name: {} for name in classes}) if selection is None else selection
        lifecycle = Lifecycle("ultralytics", "0", chosen, missing or {}, (told if told is not None else []).append)
        lifecycle.decide(known(ranks=ranks))
        calls.clear()
        return lifecycle, calls

    return register


def test_forecast_then_seam_then_live():
    run = make()
    assert entry(run)["changes"] == [{"what": "val batch per rank", "upstream": 16, "patched": 8}]
    assert entry(run)["verified"] is None
    assert run.fire(ValLoader(batch=20, train_batch=10)).batch == 10  # the seam beats the forecast
    assert entry(run)["changes"] == [{"what": "val batch per rank", "upstream": 20, "patched": 10}]
    run.start(live(loader(10), loader(10)), 10)
    assert entry(run)["verified"] is True
    assert run.plan.to_dict()["global_batch"] == 10


@pytest.mark.parametrize(
    "loaders",
    [(loader(16), loader(16)), (loader(8), loader(16)), (None, loader(8)), (), (loader(3, images=99), loader(8))],
)
def test_an_effect_that_did_not_come_is_said(loaders):
    """The loader that was built, that of the validator, and one that is missing on a rank that validates."""
    told = []
    run = make()
    run._tell = told.append
    run.fire(ValLoader(batch=16, train_batch=8))
    run.start(live(*loaders), 8)
    run.warn()
    assert entry(run)["verified"] is False
    assert [line for line in told if "did not take effect" in line]


def test_a_loader_of_somebody_elses_is_no_error():
    """A trainer that builds its validation loader itself never comes to the seam."""
    run = make()
    run.start(live(loader(16), loader(16)), 8)
    assert (entry(run)["status"], entry(run)["verified"]) == ("active", False)


def test_a_loader_holds_no_more_than_its_data_set():
    run = make()
    run.fire(ValLoader(batch=16, train_batch=8))
    run.start(live(loader(3, images=3)), 8)
    assert entry(run)["verified"] is True


def test_a_rank_that_does_not_validate_shows_nothing():
    run = make()
    run.fire(ValLoader(batch=16, train_batch=8))
    run.start(Live(validates=False, val_loaders=(None, None)), 8)
    assert entry(run)["verified"] is None


def test_inert_where_upstream_already_does_it():
    run = make(val_factor=1)
    assert entry(run)["status"] == "inert"
    assert run.fire(ValLoader(batch=8, train_batch=8)).batch == 8
    assert entry(run)["status"] == "inert"


def test_batch_option():
    run = make("val-batch:batch=3")
    assert run.fire(ValLoader(batch=16, train_batch=8)).batch == 3
    assert entry(run)["options"] == {"batch": 3}


@pytest.mark.parametrize("batch", [-1, 0.7])
def test_autobatch_is_left_to_the_seam(batch):
    run = make(batch=batch)
    assert entry(run)["status"] == "active"
    assert entry(run)["changes"] == []
    run.fire(ValLoader(batch=24, train_batch=12))
    assert entry(run)["changes"] == [{"what": "val batch per rank", "upstream": 24, "patched": 12}]


def test_fewer_images_than_ranks():
    with pytest.raises(PatchesError, match=r"batch=2 .* number of ranks \(3\).* multiple of 3"):
        make(ranks=3, batch=2)


def test_not_selected_is_off_and_does_nothing():
    run = make("none")
    assert entry(run)["status"] == "off"
    assert run.fire(ValLoader(batch=16, train_batch=8)).batch == 16


def test_missing_seam_is_unavailable_and_upstream_goes_on():
    told = []
    run = make(missing={ValLoader: "no such method"})
    run._tell = told.append
    assert entry(run)["status"] == "unavailable"
    assert entry(run)["reason"] == "ValLoader: no such method"
    assert run.fire(ValLoader(batch=16, train_batch=8)).batch == 16
    run.warn()
    run.warn()
    assert len([line for line in told if "unavailable" in line and "strict" in line]) == 1  # told once


def test_missing_seam_is_an_error_when_strict():
    with pytest.raises(PatchesError, match="val-batch: unavailable with ultralytics 0"):
        make("val-batch:strict=true", missing={ValLoader: "no such method"})


def test_banner_is_one_line():
    assert make("all").plan.banner().startswith(f"yolo-patches {__version__} (patches=all): ")
    assert "\n" not in make("all").plan.banner()
    assert "val-batch: val batch per rank 16 -> 8 (the training batch)" in make().plan.banner()


def test_a_longer_warm_up_is_in_the_plan_and_in_the_banner():
    optimization = facts.Optimization("SGD", 0.01, epochs=50)
    run = make("linear-lr", batch=1024, optimization=optimization)
    changes = {change["what"]: change["patched"] for change in entry(run, "linear-lr")["changes"]}
    assert changes["warm-up epochs"] == 5
    assert "warm-up epochs 3.0 -> 5" in run.plan.banner()
    short = make("linear-lr", batch=1024, optimization=facts.Optimization("SGD", 0.01, epochs=20))
    assert "warm-up" not in str(entry(short, "linear-lr"))  # a tenth of 20 epochs is less than upstream's own
    told = make("linear-lr", batch=1024, optimization=optimization, given={"warmup_epochs": 3.0})
    assert "warm-up" not in str(entry(told, "linear-lr"))


# Phases


def test_who_is_inside_whom(dummies):
    """Around an act the first phase is outermost; at a value it is called last, and sees what the others have made."""
    order = (Phase.COMPUTE, Phase.OBSERVE, Phase.POLICY, Phase.GUARD, Phase.SCHEDULE)
    lifecycle, calls = dummies(*order)
    assert lifecycle.around(Step(None, 1), lambda: calls.append("upstream") or "done") == "done"
    outward = ["p0", "p2", "p4", "p3", "p1"]  # compute, policy, schedule, guard, observe
    inward = outward[::-1]
    assert calls == [f"{n} before" for n in inward] + ["upstream"] + [f"{n} after" for n in outward]
    calls.clear()
    assert lifecycle.fire(ValLoader(1, 1)).batch == 6
    assert calls == [f"{name} handle" for name in outward]


def test_an_inert_patch_is_not_called(dummies):
    lifecycle, calls = dummies(Phase.POLICY, Phase.POLICY, decide=lambda self, facts: Decision("inert", "no need"))
    assert lifecycle.fire(ValLoader(1, 1)).batch == 1
    assert lifecycle.around(Step(None, 1), lambda: 3) == 3
    lifecycle.start(Live(), 8)
    assert calls == []


def test_arguments_that_the_user_gave_win(dummies):
    lifecycle, _ = dummies(Phase.POLICY)
    free = lifecycle.fire(Arguments(known(), {"scale": 0.5}))
    assert free.values == {"scale": 0.9}
    given = lifecycle.fire(Arguments(known(given={"scale": 0.5}), {}))
    assert given.values == {}  # also when equal to upstream's default
    assert lifecycle.fire(Arguments(known(), {})).values == {}  # an upstream that does not know it


# The error boundary


def everything(lifecycle, upstream):
    """Go through a training as an adapter does, and return what upstream made of it."""
    lifecycle.fire(Arguments(known(), {"scale": 0.5}))
    seen = [lifecycle.fire(ValLoader(8, 4)).batch]
    lifecycle.fire(ModelBuilt(None))
    lifecycle.start(Live(), 8)
    with lifecycle.under_way():
        for _ in range(2):
            lifecycle.first_step()
            seen.append(lifecycle.around(Step(None, 1), upstream))
        lifecycle.check(Live(), 8)
    return seen


@pytest.mark.parametrize("where", ["arguments", "handle", "prove", "verify", "before", "after", "undo", "close"])
def test_a_patch_that_raises_is_dropped_and_upstream_goes_on(dummies, where):
    told, upstream = [], itertools.count()
    lifecycle, calls = dummies(Phase.POLICY, raises=where, told=told)
    steps = everything(lifecycle, lambda: next(upstream))[1:]
    assert steps == [0, 1]  # each of upstream's steps has been made, once
    assert calls.count("p0 close") == 1
    decided = entry(lifecycle, "p0")
    if where in ("verify", "close", "undo"):  # what only reports or tidies up changes nothing
        assert decided["status"] == "active"
        assert decided["verified"] is (None if where == "verify" else True)
    else:
        assert (decided["status"], decided["verified"]) == ("failed", None)
        assert f"RuntimeError: {where} of p0" in decided["reason"]
        assert calls.count("p0 undo") == 1
        assert calls.count(f"p0 {where}") == 1  # not called again
    assert len(told) == (0 if where == "undo" else 2 if where == "verify" else 1) or where == "verify"
    assert all(line.startswith("yolo-patches: ") for line in told)


def test_decide_may_refuse_but_not_break(dummies):
    def refuse(self, facts):
        raise PatchesError("not with these")

    def broken(self, facts):
        raise KeyError("oops")

    with pytest.raises(PatchesError, match="not with these"):
        dummies(Phase.POLICY, decide=refuse)
    told = []
    lifecycle, _ = dummies(Phase.POLICY, decide=broken, told=told)
    assert entry(lifecycle, "p0")["status"] == "failed"
    assert everything(lifecycle, lambda: "done") == [8, "done", "done"]


def test_upstreams_own_error_passes_through_every_patch(dummies):
    lifecycle, calls = dummies(Phase.OBSERVE, Phase.GUARD, Phase.COMPUTE)
    error = MemoryError("upstream's")

    def upstream():
        raise error

    with pytest.raises(MemoryError) as raised:
        lifecycle.around(Step(None, 1), upstream)
    assert raised.value is error
    assert [item["status"] for item in lifecycle.plan.to_dict()["patches"]] == ["active"] * 3
    assert "p0 after" not in calls


def test_a_guard_may_repeat_an_act_and_an_error_of_ours_repeats_nothing(dummies):
    made = []

    def twice(self, act, proceed):
        proceed()
        proceed()
        raise ValueError("ours")

    lifecycle, _ = dummies(Phase.GUARD, stand=twice)
    assert lifecycle.around(Step(None, 1), lambda: made.append("step") or len(made)) == 2
    assert made == ["step", "step"]
    assert entry(lifecycle, "p0")["status"] == "failed"
    assert lifecycle.around(Step(None, 1), lambda: made.append("step") or len(made)) == 3


def test_ctrl_c_is_nobodys_failure(dummies):
    lifecycle, calls = dummies(Phase.POLICY)

    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), lifecycle.under_way():
        lifecycle.around(Step(None, 1), interrupted)
    assert calls.count("p0 close") == 1
    assert entry(lifecycle, "p0")["status"] == "active"


@pytest.mark.parametrize("phase", [Phase.POLICY, Phase.OBSERVE])
def test_in_the_middle_of_a_training_of_several_ranks(dummies, phase):
    """What others go on with ends the run by one message; what only measures is dropped by a rank alone."""
    lifecycle, _ = dummies(phase, ranks=2, raises="before")
    lifecycle._stepped = True
    if phase is Phase.OBSERVE:
        assert lifecycle.around(Step(None, 1), lambda: "done") == "done"
        return
    with pytest.raises(RanksDisagreeError, match=r"p0 failed on this rank alone.*patches=all,-p0"):
        lifecycle.around(Step(None, 1), lambda: "done")


def test_before_the_first_step_ranks_agree(dummies, monkeypatch):
    """What another rank has dropped is dropped here, too; what cannot be taken back ends the run."""
    monkeypatch.setattr("yolo_patches.lifecycle.exchange", lambda text, tell: [text, '{"p0": "ValLoader: broken"}'])
    lifecycle, calls = dummies(Phase.POLICY, Phase.POLICY, ranks=2)
    lifecycle.first_step()
    assert entry(lifecycle, "p0")["status"] == "failed"
    assert entry(lifecycle, "p0")["reason"] == "dropped on rank 1: ValLoader: broken"
    assert entry(lifecycle, "p1")["status"] == "active"
    assert calls == ["p0 undo"]
    lifecycle, _ = dummies(Phase.POLICY, ranks=2, undo=lambda self: False)
    with pytest.raises(RanksDisagreeError, match="p0 failed"):
        lifecycle.first_step()


def test_a_rank_that_says_nothing_is_named(monkeypatch):
    import torch.distributed as dist

    store = dist.HashStore()
    monkeypatch.setattr("yolo_patches.agreement.WAIT", timedelta(milliseconds=100))
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist.distributed_c10d, "_get_default_store", lambda: store)
    with pytest.raises(RanksDisagreeError, match="rank 1 has not come to the first step"):
        exchange("{}", print)


def test_losing_a_seam_drops_whoever_needs_it(dummies):
    lifecycle, _ = dummies(Phase.POLICY)
    lifecycle.lose(OptimizerStep, AttributeError("gone"))
    assert entry(lifecycle, "p0")["status"] == "active"
    lifecycle.lose(ValLoader, AttributeError("gone"))
    assert entry(lifecycle, "p0")["reason"] == "ValLoader: AttributeError: gone"


def test_a_seam_known_to_be_missing_is_lost_by_those_alone_that_need_it(dummies):
    """The adapter has said so before any patch decided: whoever can do without goes on without."""
    lifecycle, _ = dummies(Phase.POLICY, missing={ValLoader: "no such loader"})
    lifecycle.lose(ValLoader, AttributeError("gone"))
    assert entry(lifecycle, "p0")["status"] == "active"


def test_a_logger_that_cannot_log_is_no_reason_to_stop(dummies, capsys):
    def broken(line):
        raise OSError("no log")

    lifecycle, _ = dummies(Phase.POLICY, raises="handle")
    lifecycle._tell = broken
    assert lifecycle.fire(ValLoader(8, 4)).batch == 8
    assert "p0 failed" in capsys.readouterr().err


# What travels to workers


def test_a_worker_does_not_decide_again(dummies, monkeypatch):
    parent, _ = dummies(Phase.POLICY, Phase.POLICY, ranks=2)
    parent._drop("p1", "unavailable", "the parent has seen why")
    parent.plan.entries[0].options = {"pinned": 3}
    handed = Handover.of(parent.plan, facts.Given({"scale": 0.5}, {"scale": "command line"}))
    monkeypatch.setenv("YOLO_PATCHES_PLAN", handed.text())
    received = Handover.received()
    assert received == handed
    worker = Lifecycle("ultralytics", "0", parent.selection, {}, inherited=received)
    worker.decide(known(ranks=2, given=received.given.values))
    assert entry(worker, "p1") == {**entry(worker, "p1"), "status": "unavailable", "reason": "the parent has seen why"}
    assert entry(worker, "p0")["options"]["pinned"] == 3


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"selection": 1}'])
def test_a_handover_that_is_none(text, monkeypatch):
    monkeypatch.delenv("YOLO_PATCHES_PLAN", raising=False)
    if text is not None:
        monkeypatch.setenv("YOLO_PATCHES_PLAN", text)
    assert Handover.received() is None


def test_acts_say_whether_they_may_be_repeated():
    from yolo_patches.memory_seams import MicroStep, PrecisionCheck, Prediction, Preparation

    repeatable = {act for act in Act.__subclasses__() if act.repeatable}
    assert repeatable == {Validation, Save, PrecisionCheck, Preparation, MicroStep, Prediction}


def test_what_an_upstream_has_no_place_for_is_missed_by_whoever_names_it():
    """Under `all` it has nothing to do there; what a release has lost is missed in any case."""
    from yolo_patches.seams import NO_PLACE, Loading

    def status(spec, why):
        lifecycle = Lifecycle.of(known(), parse(spec, registry.specs()), {Loading: why})
        return next(item.decision.status for item in lifecycle.plan.entries if item.name == "monitor")

    assert status("all", NO_PLACE) == "inert"
    assert status("all,monitor:plot=false", NO_PLACE) == "unavailable"
    assert status("all", "it was renamed") == "unavailable"
    with pytest.raises(PatchesError, match="unavailable"):
        status("monitor:strict=true", NO_PLACE)
