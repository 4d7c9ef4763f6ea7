"""Writes below each snippet of README and the guides what it prints: `python docs/outputs.py`.

Each runs by itself, as a reader pastes it, with warnings as errors. Give pages to do these alone.
The tests compare; this is for when a change of what is printed is meant.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"```python\n(.*?)```(?:\s*```text\n.*?```)?", re.DOTALL)


def printed(code: str) -> str:
    """Returns what a program prints, run with this checkout's package."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout.rstrip()


def with_output(fence: re.Match[str]) -> str:
    """Returns a snippet, followed by what it prints, if anything."""
    output = printed(fence[1])
    below = f"\n\n```text\n{output}\n```" if output else ""
    return f"```python\n{fence[1]}```{below}"


if __name__ == "__main__":
    pages = [Path(page) for page in sys.argv[1:]]
    for page in pages or [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        text = page.read_text(encoding="utf-8")
        if (new := FENCE.sub(with_output, text)) != text:
            page.write_text(new, encoding="utf-8", newline="\n")
            print(f"Wrote {page}.")
