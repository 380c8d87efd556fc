"""What the training loops of Ultralytics, YOLOv5 and YOLOv9 do with an accumulation that an epoch leaves unfinished."""

from __future__ import annotations

import ast
import textwrap

#: Their name for the iteration of the last optimizer step.
LAST_STEP = "last_opt_step"


def carried(source: str) -> bool | None:
    """Return whether its gradients go on into the next epoch; None where the loop is not one that we know.

    They are lost where the loop over epochs zeroes all gradients before its loop over batches: Ultralytics up to
    8.1, YOLOv5 and YOLOv9. The count goes on all the same, so that the next step is one of fewer batches.

    Args:
        source: Python code that holds the loop.
    """
    try:
        tree = ast.parse(textwrap.dedent(source))
    except (SyntaxError, ValueError):
        return None
    found = _loops(tree, ())
    if found is None or len(found) < 2:
        return None
    return not any(_zeroes(statement) for statement in found[-2].body)


def _loops(node: ast.AST, around: tuple[ast.For | ast.While, ...]) -> tuple[ast.For | ast.While, ...] | None:
    """Return the loops around the comparison with the last step, the innermost last."""
    if isinstance(node, ast.Compare) and LAST_STEP in {
        name.id for name in ast.walk(node) if isinstance(name, ast.Name)
    }:
        return around
    inside = (*around, node) if isinstance(node, (ast.For, ast.While)) else around
    return next(filter(None, (_loops(child, inside) for child in ast.iter_child_nodes(node))), None)


def _zeroes(statement: ast.stmt) -> bool:
    call = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(call, ast.Call) and getattr(call.func, "attr", "") == "zero_grad"
