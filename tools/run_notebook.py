"""Run a notebook in this process and store what its cells show: `python tools/run_notebook.py docs/first-map.ipynb`.

It needs no Jupyter. Cells run one after the other in a temporary folder; what a cell prints, and the value of its last
expression, become its outputs.
"""

from __future__ import annotations

import argparse
import ast
import base64
import contextlib
import io
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

PARAMETERS = "parameters"  # tag of the cell whose values a caller may replace


def run_cells(
    notebook: dict[str, Any], parameters: dict[str, Any] | None = None
) -> Iterator[tuple[dict[str, Any], Any]]:
    """Run the code cells of a notebook in the current folder; yield each with the value of its last expression.

    `parameters` replace variables after the cell that is tagged so.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(one for one in notebook["cells"] if one["cell_type"] == "code"):
        tree = ast.parse("".join(cell["source"]), f"cell {number}")
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(tree, f"cell {number}", "exec"), names)
            value = None if last is None else eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), names)
        if PARAMETERS in cell["metadata"].get("tags", ()):
            names |= parameters or {}
        cell["execution_count"] = number + 1
        cell["outputs"] = list(_outputs(printed.getvalue(), value, number + 1))
        yield cell, value


def _outputs(printed: str, value: Any, count: int) -> Iterator[dict[str, Any]]:
    """Yield the outputs of a cell as nbformat 4 has them."""
    if printed:
        yield {"output_type": "stream", "name": "stdout", "text": printed.splitlines(keepends=True)}
    if value is not None:
        data: dict[str, Any] = {"text/plain": repr(value).splitlines(keepends=True)}
        if hasattr(value, "_repr_png_"):
            data["image/png"] = base64.b64encode(_small_png(value._repr_png_())).decode() + "\n"
        elif hasattr(value, "_repr_html_"):
            data["text/html"] = value._repr_html_().splitlines(keepends=True)
        yield {"output_type": "execute_result", "execution_count": count, "metadata": {}, "data": data}


def _small_png(png: bytes) -> bytes:
    """Return a picture with 256 colours, a third of its size."""
    stream = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(256).save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notebook", type=Path)
    path = parser.parse_args().notebook.absolute()
    notebook = json.loads(path.read_text(encoding="utf-8"))
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            for cell, _ in run_cells(notebook):
                print(f"[{cell['execution_count']}]", "".join(cell["source"]).splitlines()[0])
        finally:
            os.chdir(before)
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
