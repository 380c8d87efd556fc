"""The examples of docs/ are complete: they are installed and run as they stand there."""

from __future__ import annotations

import json
import re

from tests.conftest import ROOT, entry, last_json


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / "docs" / page).read_text(), re.MULTILINE | re.DOTALL)


def install(folder, name, toml, **modules):
    """Put modules and their entry points where an installation would put them."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    group, point = re.search(r'entry-points\."(.+?)"\]\n(.*)', toml, re.DOTALL).groups()
    (info / "entry_points.txt").write_text(f"[{group}]\n" + point.replace('"', ""))
    for module, text in modules.items():
        (folder / f"{module}.py").write_text(text)


def test_the_patch_trains(python, digits, tmp_path):
    (toml,), (code,) = blocks("write-a-patch.md", "toml"), blocks("write-a-patch.md", "python")
    install(tmp_path / "site", "spike", toml, spike=code)
    words = (
        "model=yolov8n.yaml", f"data={digits()}", "epochs=2", "imgsz=64", "batch=4", "nbs=4", "device=cpu",
        "plots=False", f"project={tmp_path}", "name=run", "patches=spike:factor=3",
    )  # fmt: skip
    python("-m", "yolo_patches", "train", *words, PYTHONPATH=str(tmp_path / "site"))
    found = entry(json.loads((tmp_path / "run" / "patches.json").read_text()), "spike")
    assert (found["status"], found["verified"], found["options"]) == ("active", True, {"factor": 3.0})


TRAIN = """
import json
import yolo_patches
yolo_patches.apply("default")
import tinytrain
from yolo_patches.activation import activation
trainer = tinytrain.Trainer(batch=4)
trainer.train()
patched = [trainer.val_loader.batch_size, activation.last_plan.to_dict()]
yolo_patches.revert()
trainer = tinytrain.Trainer(batch=4)
trainer.train()
print(json.dumps([*patched, trainer.val_loader.batch_size]))
"""


def test_the_adapter_trains(python, tmp_path):
    (toml,), (upstream, adapter) = blocks("add-an-upstream.md", "toml"), blocks("add-an-upstream.md", "python")
    install(tmp_path / "site", "tinytrain", toml, tinytrain=upstream, tinyadapter=adapter)
    done = python("-c", TRAIN, PYTHONPATH=str(tmp_path / "site"))
    patched, plan, reverted = last_json(done)
    assert (patched, reverted) == (4, 8)
    assert (entry(plan)["status"], entry(plan)["verified"]) == ("active", True)
    assert entry(plan, "linear-lr")["status"] == "unavailable"
    assert "val batch per rank 8 -> 4" in done.stdout
    assert done.stderr.count("linear-lr is unavailable") == 1


def test_the_table_of_seams_is_complete():
    from yolo_patches import caching_seams, loading_seams, memory_seams, seams, validation_seams

    assert caching_seams.ImageCache in seams.Act.__subclasses__()
    assert memory_seams.MicroStep in seams.Act.__subclasses__()
    assert {validation_seams.Evaluation, loading_seams.Samples} <= set(seams.Seam.__subclasses__())

    page = (ROOT / "docs" / "architecture.md").read_text()
    kinds = {cls.__name__ for base in (seams.Seam, seams.Act) for cls in base.__subclasses__()} - {"Act"}
    for name in kinds:
        assert re.search(rf"^\| `{name}`", page, re.MULTILINE), name


def test_links_of_the_documents_lead_somewhere():
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), (page.name, link)
