"""`yolo-patches recipes`: tables, the command of the authors' run, and where a finished run departed."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys

import pytest
import yaml

from tests.conftest import last_json
from yolo_patches import cli, recipes

#: Upstream's own check of every word.
CHECK = """
import json, sys
from ultralytics.cfg import get_cfg
found = {}
for name, words in json.load(open(sys.argv[1])).items():
    found[name] = vars(get_cfg(overrides={key: value for key, value in words.items() if key != "patches"}))
print(json.dumps(found, default=str))
"""


def say(capsys, *words):
    status = cli.main(["recipes", *words])
    done = capsys.readouterr()
    return status, done.out, done.err


def test_all_of_them(capsys):
    status, out, _ = say(capsys)
    assert status == 0
    assert len(out.splitlines()) == len(list(recipes.names())) + 2
    line = next(line for line in out.splitlines() if line.startswith("yolov10x "))
    assert line.split()[:8] == ["yolov10x", "0.9", "0.15", "0.3", "SGD", "0.01", "500", "160~"]
    assert len(json.loads(say(capsys, "--json")[1])) == len(list(recipes.names()))


def test_one_of_them(capsys):
    _, out, _ = say(capsys, "yolov10x.yaml")
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines()[1:]}
    assert rows["scale"] == ["0.5", "0.9", "high", "T14"]
    assert rows["mosaic"] == ["1.0", "1.0", "high", "T14", "="]  # the same as upstream's
    assert rows["batch"][:2] == ["160", "medium"]
    assert "https://arxiv.org/abs/2405.14458" in out
    assert "stronger" in out
    scratch, weights = json.loads(say(capsys, "yolo26n", "--json")[1])
    assert (scratch["start"], weights["start"]) == ("scratch", "finetune")
    assert scratch["arguments"]["translate"]["value"] is None
    assert scratch["arguments"]["scale"]["sources"][0]["url"].startswith("https://")
    assert say(capsys, "yolo11x-seg")[1].startswith("yolo11x: YOLO11 x, from scratch")


def test_commands_are_the_recipes(capsys, python, tmp_path):
    words = {}
    for name, family, _ in recipes.names("ultralytics"):
        if family != "yolo26":  # its first stage is found under the same name
            command = shlex.split(say(capsys, "--command", name, "--gpus", "1")[1])
            assert command[:2] == ["yolo", "train"]
            words[name] = {key: yaml.safe_load(value) for key, _, value in (w.partition("=") for w in command[2:])}
    (tmp_path / "words.json").write_text(json.dumps(words))
    found = last_json(python("-c", CHECK, tmp_path / "words.json"))
    for name, values in found.items():
        recipe = recipes.find("ultralytics", name)
        known = {key: value.value for key, value in recipe.arguments.items() if value.trusted()}
        assert {key: values[key] for key in known} == known, name
        assert values["batch"] == (recipe.value("batch", "low") or 16)


def test_on_the_gpus_of_the_authors_it_is_their_run(capsys):
    _, out, err = say(capsys, "--command", "yolov10x", "--gpus", "8")
    assert out.startswith("yolo train model=yolov10x.yaml data=coco.yaml device=0,1,2,3,4,5,6,7 batch=160 scale=0.9 ")
    assert out.rstrip().endswith(" patches=none")
    assert all(line.startswith("# ") for line in err.splitlines())
    assert say(capsys, "--command", "yolov10x")[1] == out
    _, out, err = say(capsys, "--command", "yolov10x", "--gpus", "4")
    assert out.rstrip().endswith("patches=default")
    assert "they trained on 8; yolo-patches lets any number of GPUs train like one" in err
    _, out, _ = say(capsys, "--command", "yolov9-c")
    assert out.startswith("torchrun --nproc_per_node 8 train_dual.py --weights ''")
    assert "--hyp data/hyps/hyp.scratch-high.yaml --close-mosaic 15 --min-items 0 --sync-bn" in out
    _, out, _ = say(capsys, "--command", "yolov5n")
    assert out.startswith("python train.py --weights '' --data data/coco.yaml --cfg models/yolov5n.yaml --device 0 ")
    assert "--batch-size 128" in out
    assert "hyp.scratch-low.yaml" in out
    made = json.loads(say(capsys, "--command", "yolo11n", "--json")[1])
    assert made["text"].startswith("yolo train model=yolo11n.yaml")


@pytest.mark.parametrize(("words", "message"), [
    (("yolov10z",), "nothing was published for 'yolov10z' (did you mean 'yolov10"),
    (("--command", "yolov10x", "--gpus", "3"), "160 cannot be shared by 3 GPUs; give one of 1, 2, 4, 5, 8, 10"),
    (("--command", "yolov10x", "--gpus", "0"), "0 is not a number of GPUs"),
    (("--gpus", "3"), "--gpus is for --command"),
    (("--diff", "no/such.yaml"), "no/such.yaml cannot be read"),
    (("--diff", __file__), "cannot be read"),
])  # fmt: skip
def test_bad_input(words, message, capsys):
    status, out, err = say(capsys, *words)
    assert (status, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1


def test_where_a_run_departed(capsys, tmp_path):
    run = {"model": "yolo11m.yaml", "pretrained": True, "scale": 0.5, "mixup": 0.0, "copy_paste": 0.4, "batch": 64}
    (tmp_path / "args.yaml").write_text(yaml.safe_dump(run))
    _, out, _ = say(capsys, "--diff", str(tmp_path / "args.yaml"))
    assert [line.split()[0] for line in out.splitlines()[2:4]] == ["scale", "mixup"]
    assert "AP 48.3 with Ultralytics' defaults, 51.0 with these" in out
    assert "https://github.com/ultralytics/ultralytics/issues/20278" in out
    rows = json.loads(say(capsys, "--diff", str(tmp_path / "args.yaml"), "--json")[1])["differences"]
    assert [(row["argument"], row["run"], row["recipe"]) for row in rows] == [("scale", 0.5, 0.9), ("mixup", 0.0, 0.15)]
    (tmp_path / "args.yaml").write_text(
        yaml.safe_dump({**run, "model": "runs/yolo26m.pt", "scale": 0.95, "mixup": 0.427})
    )
    assert "published from weights" in say(capsys, "--diff", str(tmp_path / "args.yaml"))[1]
    options = {"cfg": "models/yolov5m.yaml", "weights": "", "batch_size": 40, "epochs": 300}
    (tmp_path / "opt.yaml").write_text(yaml.safe_dump(options))
    (tmp_path / "hyp.yaml").write_text(yaml.safe_dump({"scale": 0.5, "mixup": 0.1, "lr0": 0.01}))
    rows = json.loads(say(capsys, "--diff", str(tmp_path / "opt.yaml"), "--json")[1])["differences"]
    assert [row["argument"] for row in rows] == ["scale"]
    for text in ("[]", "{}", "a: 1"):
        (tmp_path / "args.yaml").write_text(text)
        status, _, err = say(capsys, "--diff", str(tmp_path / "args.yaml"))
        assert status == 2 and "names no model" in err


def test_a_reader_who_has_enough(tmp_path):
    command = f"{sys.executable} -m yolo_patches recipes | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("model ")
