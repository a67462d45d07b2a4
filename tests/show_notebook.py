"""A notebook as text, cell by cell, so that `git diff` can be read; only what it shows changes, no merge and no patch.

Once in a clone: git config diff.notebook.textconv "python3 tests/show_notebook.py"
"""

import hashlib
import json
import sys


def lines(path):
    with open(path, encoding="utf-8") as f:
        cells = json.load(f)["cells"]
    for cell in cells:
        yield f"# %% {cell['cell_type']} {cell['id']}"
        yield "".join(cell["source"])
        for output in cell.get("outputs", []):
            for kind, shown in output.get("data", {"text/plain": output.get("text", "")}).items():
                text = shown if isinstance(shown, str) else "".join(shown)
                picture = f"{kind}, {hashlib.sha256(text.encode()).hexdigest()[:8]}"
                yield f"# shows {text if kind.startswith('text/') else picture}"


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8")
    print(*lines(sys.argv[1]), sep="\n")
