"""Run a script, `-c CODE` or `-m MODULE` in a process that read no start-up files; block the package, or do not."""

import json
import os
import runpy
import sys


class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "yolo_patches":
            raise ModuleNotFoundError("No module named 'yolo_patches'", name="yolo_patches")


sys.path[0:1] = [""]
sys.path += [folder for folder in json.loads(os.environ["ABSENT_PATH"]) if folder not in sys.path]
if os.environ["ABSENT_BLOCK"] == "1":
    sys.meta_path.insert(0, Blocker())
assert "yolo_patches" not in sys.modules

del sys.argv[0]
if sys.argv[0] == "-c":
    code = sys.argv.pop(1)
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
elif sys.argv[0] == "-m":
    module = sys.argv.pop(1)
    sys.argv[0] = module
    runpy.run_module(module, run_name="__main__", alter_sys=True)
else:
    runpy.run_path(sys.argv[0], run_name="__main__")
