"""torchrun: what it decides, where a rank's place and device come from, and that stand-ins leave nothing behind."""

from __future__ import annotations

import itertools
import sys
from contextlib import nullcontext
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import distributed

from yolo_patches.errors import PatchesError
from yolo_patches.facts import Batch, Devices, Facts, Launcher
from yolo_patches.patches.torchrun import Torchrun
from yolo_patches.seams import Ranks
from yolo_patches.upstreams.ultralytics import facts as found
from yolo_patches.upstreams.ultralytics import launch, stand_ins

VARIABLES = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}


def facts(world_size=8, local_world_size=4, global_batch=32, named=0, **values):
    place = values.pop("launcher", Launcher(0, world_size, 0, local_world_size))
    devices = Devices(world_size, named=named, launcher=place, **values)
    return Facts("ultralytics", "8.4.190", "detect", Batch(global_batch), devices=devices)


@pytest.fixture
def launched(monkeypatch):
    for name, value in {**VARIABLES, "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)


def test_decides_by_the_launcher():
    decision = Torchrun().decide(facts())
    assert (decision.status, str(decision.changes[0])) == ("active", "ranks 1 -> 8")
    assert str(Torchrun().decide(facts(named=4)).changes[0]) == "ranks 4 -> 8"
    assert Torchrun().decide(facts(launcher=None)).status == "inert"
    alone = Torchrun().decide(facts(1, 1, global_batch=-1))  # AutoBatch serves one rank
    assert (alone.status, alone.changes) == ("active", ())


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"global_batch": 30}, "batch=30 cannot be shared by 8 ranks.* nearest valid is 24 or 32$"),
        ({"global_batch": 7}, "batch=7 .* nearest valid is 8$"),
        ({"global_batch": -1}, r"batch=-1 \(AutoBatch\) .* a multiple of 8"),
        ({"global_batch": 0.7}, r"batch=0.7 \(AutoBatch\)"),
        ({"named": 1}, "names 1 device, but the launcher started 4 ranks on this node"),
        ({"named": 2, "world_size": 1, "local_world_size": 1}, "names 2 devices, but .* 1 rank on this node"),
        ({"named": 1, "launcher": Launcher(1, 8, 1, None)}, "names 1 device, but .* 2 ranks on this node"),
    ],
)
def test_refuses_what_ranks_cannot_share(values, words):
    with pytest.raises(PatchesError, match=words):
        Torchrun().decide(facts(**values))


def test_backend_is_an_option():
    for option, expected in (("auto", "nccl"), ("gloo", "gloo")):
        seam = Ranks("nccl")
        Torchrun(backend=option).handlers()[Ranks](seam)
        assert seam.backend == expected


def test_place_comes_from_the_launcher(launched, monkeypatch):
    assert found.launcher() == Launcher(5, 8, 1, 4)
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert found.launcher() == Launcher(5, 8, 1, None)
    assert (found.world_size("cpu"), found.world_size("0,1")) == (1, 2)  # what upstream makes of it, unpatched
    for name in VARIABLES:
        with monkeypatch.context() as patch:
            patch.delenv(name)
            assert found.launcher() is None


def test_workers_that_upstream_starts_are_its_own(launched, monkeypatch):
    monkeypatch.setattr(
        sys.modules["__main__"], "__file__", "/home/me/.config/Ultralytics/DDP/_temp_x1.py", raising=False
    )
    assert found.launcher() is None
    assert found.world_size("0,1") == 8


@pytest.mark.parametrize(
    ("named", "names"),
    [
        (None, []),
        ("", []),
        ("None", []),
        ("cpu", []),
        ("mps", []),
        (0, ["0"]),
        ("0,2", ["0", "2"]),
        ([0, 2], ["0", "2"]),
        ("[0, 1]", ["0", "1"]),
        ("cuda:0,cuda:1", ["0", "1"]),
    ],
)
def test_devices_are_read_as_upstream_spells_them(named, names):
    assert found.device_names(named) == names


@pytest.mark.parametrize(
    ("named", "visible", "count", "local", "index"),
    [
        (None, None, 4, 1, 1),
        (None, "2", 1, 1, 0),  # a launcher that shows each rank its own device
        ("0,2", "0,2", 2, 1, 1),  # releases that turn device= into CUDA_VISIBLE_DEVICES
        ("0,2", None, 4, 1, 2),  # releases that do not
        ("0,2", "4,5,6,7", 4, 1, 2),
        ("4,5", "4, 5", 2, 1, 1),
    ],
)
def test_each_rank_takes_its_device(named, visible, count, local, index, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert rank(local, "cuda", named)._device() == torch.device("cuda", index)


def test_a_rank_without_a_device_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(PatchesError, match="local rank 2 has no device: this node shows 2"):
        rank(2, "cuda", None)._device()
    with pytest.raises(PatchesError, match="cannot use 'mps' devices"):
        rank(0, "mps", None)._device()
    assert rank(1, "cpu", "cpu")._device() == torch.device("cpu")


def rank(local, device, named):
    trainer = SimpleNamespace(device=torch.device(device), args=SimpleNamespace(device=named))
    return launch._Launch(trainer, None, Launcher(4 + local, 8, local, 4))


class Store(dict):
    def set(self, key, value):
        self[key] = value.encode()

    def get(self, key):
        return self[key]


def test_rank_0_names_the_run_directory_or_says_that_there_is_none(monkeypatch):
    store = Store()
    monkeypatch.setattr(stand_ins, "no_turns", nullcontext)
    monkeypatch.setattr(launch._Launch, "_store", lambda self, purpose: store)

    def constructed(number, error=None):
        trainer = SimpleNamespace(args=SimpleNamespace(rect=False), save_dir="runs/train7")
        with launch._Launch(trainer, None, Launcher(number, 2, 0, 1)).constructing():
            if error:
                raise error
        return trainer

    store.add = lambda key, value: 0
    constructed(0)
    assert constructed(1).args.save_dir == "runs/train7"
    with pytest.raises(FileNotFoundError):
        constructed(0, FileNotFoundError("data.yaml"))
    with pytest.raises(PatchesError, match="rank 0 could not start the run"):
        constructed(1)


def test_names_are_replaced_wherever_upstream_holds_them(monkeypatch):
    modules = {name: ModuleType(name) for name in ("ultralytics.utils", "ultralytics.a", "other.b")}
    for name, module in modules.items():
        module.RANK = 0
        monkeypatch.setitem(sys.modules, name, module)
    late = ModuleType("ultralytics.late")
    with stand_ins._everywhere("RANK", 0, -1):
        assert [module.RANK for module in modules.values()] == [-1, -1, 0]
        late.RANK = modules["ultralytics.utils"].RANK
        monkeypatch.setitem(sys.modules, "ultralytics.late", late)
    assert [module.RANK for module in (*modules.values(), late)] == [0] * 4


def test_turns_are_as_many_barriers_on_every_rank(monkeypatch):
    calls = []
    monkeypatch.setattr(stand_ins, "barrier", lambda: calls.append("wait"))
    torch_utils, first = ModuleType("ultralytics.utils.torch_utils"), object()
    torch_utils.torch_distributed_zero_first = first
    monkeypatch.setitem(sys.modules, "ultralytics.utils.torch_utils", torch_utils)
    for number, place in enumerate([Launcher(0, 4, 0, 2), Launcher(2, 4, 0, 2), Launcher(3, 4, 1, 2)]):
        calls.clear()
        with stand_ins.in_turns(place), torch_utils.torch_distributed_zero_first(place.local_rank):
            calls.append("work")
        assert calls == ["wait"] * number + ["work"] + ["wait"] * (2 - number)
        calls.clear()
        with stand_ins.in_turns(place), torch_utils.torch_distributed_zero_first(-1):
            pass
        assert calls == []  # a loader that rank 0 alone builds
    assert torch_utils.torch_distributed_zero_first is first


def test_gloo_gets_what_older_releases_of_it_lack(monkeypatch):
    """Stand in for a gloo without booleans and without the mean, of two ranks that hold the same."""
    numbers = itertools.count()

    def broadcast(tensor, src):
        assert tensor.dtype is not torch.bool
        next(numbers)
        tensor.fill_(1)

    def reduce(tensor, dst, op):
        assert op != distributed.ReduceOp.AVG
        next(numbers)

    monkeypatch.setattr(distributed, "broadcast", broadcast)
    monkeypatch.setattr(distributed, "reduce", reduce)
    monkeypatch.setattr(distributed, "all_reduce", lambda tensor: tensor.mul_(2))
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed, "get_backend", lambda: "gloo")
    flag, mean = torch.tensor(False), torch.tensor([3.0])
    with stand_ins.gloo():
        distributed.broadcast(flag, src=0)
        distributed.reduce(mean, dst=0, op=distributed.ReduceOp.AVG)
        distributed.reduce(mean, 0, distributed.ReduceOp.SUM)
    assert (bool(flag), mean.item(), next(numbers)) == (True, 3.0, 2)
    assert (distributed.broadcast, distributed.reduce) == (broadcast, reduce)


@pytest.mark.parametrize(("device", "ids"), [(torch.device("cpu"), None), (torch.device("cuda", 2), [2])])
def test_data_parallel_is_built_on_the_ranks_device(device, ids, monkeypatch):
    seen = []
    parallel = torch.nn.parallel.DistributedDataParallel

    def build(self, module, device_ids=None, find_unused_parameters=False):
        seen.append((device_ids, find_unused_parameters))

    monkeypatch.setattr(parallel, "__init__", build)
    with stand_ins.data_parallel_on(device):
        parallel(None, device_ids=[5], find_unused_parameters=True)
    assert seen == [(ids, True)]
    assert vars(parallel)["__init__"] is build
