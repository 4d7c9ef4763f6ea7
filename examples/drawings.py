"""Draws labelled pictures, where there is no network to fetch any from: `draw(count, seed)`.

Each picture shows one of ten figures, and its label says which. Place, size and direction vary a
little, colours and contrast a lot. A stroke crosses the picture, the paper is darker to one side,
and everything is grainy.

All of it is printed in two inks on white paper. Cyan ink takes out red light, red ink takes out
green and blue alike, so that *green equals blue in every pixel*. The difference between the weights
of green and of blue is therefore something that no picture ever shows to a network.

`python examples/drawings.py` shows two of each class, in drawings.png.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np

Figure = Callable[[np.ndarray, np.ndarray], np.ndarray]


def polygon(sides: int) -> Figure:
    """The distance from a regular polygon whose corners are at distance 1 from its centre."""

    def distance(u, v):
        angles = 2 * np.pi * np.arange(sides) / sides
        edges = [u * np.cos(a) + v * np.sin(a) for a in angles]
        return np.max(edges, axis=0) - np.cos(np.pi / sides)

    return distance


def star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The distance from a star of five points, seen from a corner of its inner pentagon."""
    r, fifth = np.hypot(u, v), np.pi / 5
    angle = np.abs(np.mod(np.arctan2(v, u), 2 * fifth) - fifth)  # 0 at a corner, `fifth` at a tip
    corner, tip = np.array([0.4, 0.0]), np.array([np.cos(fifth), np.sin(fifth)])
    along = (tip - corner) / np.linalg.norm(tip - corner)
    return (r * np.cos(angle) - corner[0]) * along[1] - r * np.sin(angle) * along[0]


# How far a point (u, v) is from the figure: below 0 inside of it. Each fits into the unit circle.
FIGURES: dict[str, Figure] = {
    "disc": lambda u, v: np.hypot(u, v) - 1,
    "ring": lambda u, v: np.abs(np.hypot(u, v) - 0.75) - 0.25,
    "half disc": lambda u, v: np.maximum(np.hypot(u, v) - 1, -u),
    "crescent": lambda u, v: np.maximum(np.hypot(u, v) - 1, 0.8 - np.hypot(u - 0.5, v)),
    "triangle": polygon(3),
    "square": polygon(4),
    "frame": lambda u, v: np.abs(np.maximum(np.abs(u), np.abs(v)) - 0.55) - 0.15,
    "cross": lambda u, v: np.minimum(
        np.maximum(np.abs(u) - 0.95, np.abs(v) - 0.3), np.maximum(np.abs(u) - 0.3, np.abs(v) - 0.95)
    ),
    "star": star,
    "two bars": lambda u, v: np.maximum(np.abs(np.abs(u) - 0.5) - 0.2, np.abs(v) - 0.7),
}


def draw(count: int, seed: int, size: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Draws pictures and says what is on them; the same ones for the same arguments.

    Args:
      count: how many. Classes are as many times in it as each other, or once more.
      seed: of all that is random.
      size: height and width, in pixels; 8 or more.

    Returns:
      Pictures of shape (count, size, size, 3) in uint8, whose last axis is red, green and blue, and
      labels of shape (count,) in int32, indices into `FIGURES`.

    Raises:
      ValueError: if `count` is below 1 or `size` below 8.
    """
    if count < 1 or size < 8:
        raise ValueError(f"count={count} and size={size}. Use a count from 1 and a size from 8.")
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % len(FIGURES)).astype(np.int32)

    def uniform(low, high, *shape):
        return rng.uniform(low, high, (count, *shape, 1, 1))

    pixels = (2 * np.arange(size) + 1) / size - 1  # their centres, from -1 to 1
    y, x = np.meshgrid(pixels, pixels, indexing="ij")

    # Ink of two colours, from 0 to 1: (count, 2, size, size). Paper first, darker to one side.
    slope = uniform(-0.15, 0.15, 2, 2)
    ink = uniform(0.1, 0.7, 2) + slope[:, :, 0] * x + slope[:, :, 1] * y

    # The figure is lighter or darker than the paper by `contrast`, split between the inks.
    radius, turn, hue = uniform(0.55, 0.85), uniform(-0.5, 0.5), uniform(0, 2 * np.pi)
    right, down = x - uniform(-0.15, 0.15), y - uniform(-0.15, 0.15)
    u = (right * np.cos(turn) + down * np.sin(turn)) / radius
    v = (down * np.cos(turn) - right * np.sin(turn)) / radius
    distance = np.empty((count, size, size))
    for label, figure in enumerate(FIGURES.values()):
        distance[labels == label] = figure(u[labels == label], v[labels == label])
    covered = np.clip(0.5 - distance * radius * size / 2, 0, 1)  # soft along the edge
    contrast = uniform(0.4, 0.8, 1) * np.stack([np.cos(hue), np.sin(hue)], axis=1)
    ink = ink + covered[:, None] * contrast

    direction, offset = uniform(0, np.pi), uniform(-0.8, 0.8)
    across = np.abs(x * np.cos(direction) + y * np.sin(direction) - offset)
    stroke = np.clip(0.5 - (across - 0.08) * size / 2, 0, 1)
    ink = ink + stroke[:, None] * uniform(-0.4, 0.4, 2)

    ink = np.clip(ink + rng.normal(scale=0.04, size=ink.shape), 0, 1)
    light = np.rint(255 * (1 - ink)).astype(np.uint8)
    return np.stack([light[:, 0], light[:, 1], light[:, 1]], axis=-1), labels


def main():
    """Shows two of each class."""
    parser = argparse.ArgumentParser(
        description="Shows two drawings of each class.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--size", type=int, default=16, help="of a picture, in pixels")
    parser.add_argument("--figure", type=Path, default=Path("drawings.png"), help="where it goes")
    args = parser.parse_args()
    import matplotlib.pyplot as plt

    images, labels = draw(2 * len(FIGURES), seed=0, size=args.size)
    grid = plt.figure(figsize=(4.9, 4.6), layout="constrained").subplots(4, 5)
    for label, name in enumerate(FIGURES):
        row, column = divmod(label, 5)
        for ax, image in zip(grid[2 * row :, column], images[labels == label], strict=False):
            ax.imshow(image)
            ax.set(xticks=[], yticks=[])
        grid[2 * row, column].set_title(name, fontsize=9)
    plt.savefig(args.figure, dpi=200)
    print(f"The drawings are in {args.figure}.")


if __name__ == "__main__":
    main()
