"""Gives the project another address: `python docs/address.py OWNER/REPOSITORY`.

The address stands in pyproject.toml, as Repository under [project.urls]. This rewrites it there and
in every badge, install cell and link, so that nothing points to a repository of somebody else.
"""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
WITH_LINKS = (
    "*.toml *.md *.cff docs/**/*.md docs/conf.py notebooks/*.md notebooks/*.ipynb .github/**/*.yml"
)


def files(root: Path) -> list[Path]:
    """Returns the files that may have links into the repository."""
    return sorted(path for pattern in WITH_LINKS.split() for path in root.glob(pattern))


def current(root: Path) -> str:
    """Returns the OWNER/REPOSITORY that pyproject.toml states."""
    urls = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]
    return urls["Repository"].removeprefix("https://github.com/")


def move(root: Path, new: str) -> list[Path]:
    """Rewrites the address in all files; returns those that had it."""
    old = current(root)
    # Pages are served at OWNER.github.io/REPOSITORY.
    pairs = [(old, new), (old.replace("/", ".github.io/"), new.replace("/", ".github.io/"))]
    changed = []
    for path in files(root):
        text = moved = path.read_text(encoding="utf-8")
        for before, after in pairs:
            moved = re.sub(rf"(?<![\w.-]){re.escape(before)}(?![\w-])", after, moved)
        if moved != text:
            path.write_text(moved, encoding="utf-8", newline="\n")
            changed.append(path)
    return changed


if __name__ == "__main__":
    if len(sys.argv) != 2 or not re.fullmatch(r"[\w-]+/[\w.-]+", sys.argv[1]):
        sys.exit(f"It is {current(ROOT)}. Give the new one as OWNER/REPOSITORY.")
    print(*(path.relative_to(ROOT) for path in move(ROOT, sys.argv[1])), sep="\n")
