"""One style for every figure: colours, dashes, sizes, the legend, and how a figure becomes a file.

Draw inside `with applied():`, so that no setting of a reader's own matplotlib leaks in and none of ours leaks out.
"""
import io
import os
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minillm.errors import MiniLLMError
from minillm.files import write_whole

WIDTH = 7.0  # inches: the width of a page
HEIGHT = 4.0
DPI = 150

# Okabe and Ito's colours, which colour-blind readers tell apart; their yellow is too pale for a line on white.
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILLION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
PALETTE = (SKY, PURPLE, ORANGE, BLUE, GREEN, VERMILLION, BLACK)
GREY = "#595959"  # notes and reference lines

SETTINGS = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "legend.handlelength": 3.0,  # long enough to show a dash pattern
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,  # "+2.45" in a corner is read past
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 7,
    "hatch.linewidth": 0.6,
}


@dataclass(frozen=True)
class Look:
    """How one recipe is drawn: colour, and a dash pattern and a marker that tell it apart in grey print."""

    color: str
    dashes: Any
    marker: str

    @property
    def line(self) -> dict[str, Any]:
        """Keyword arguments for a line."""
        return {"color": self.color, "linestyle": self.dashes}

    @property
    def points(self) -> dict[str, Any]:
        """Keyword arguments for markers without a line; a white rim sets them off from the line that they lie on."""
        return {"color": self.color, "marker": self.marker, "linestyle": "none", "markeredgecolor": "white"}


RECIPE_LOOKS: Mapping[str, Look] = {
    "float32": Look(BLACK, "-", "o"),
    "bfloat16-mixed": Look(GREEN, (0, (6, 1.5)), "s"),
    "float16-mixed": Look(BLUE, (0, (8, 1.5, 1.5, 1.5)), "^"),
    "float16-unscaled": Look(ORANGE, (0, (3, 1.2)), "D"),
    "float16": Look(VERMILLION, (0, (1.5, 1)), "v"),
    "float16-no-master": Look(PURPLE, (0, (5, 1.2, 1.2, 1.2, 1.2, 1.2)), "p"),
}
# Five dashes and five markers beside seven colours: 35 names go by before one look comes back.
OTHER_DASHES = ("-", (0, (4, 1.5)), (0, (2, 1)), (0, (9, 2)), (0, (6, 1.5, 1.5, 1.5)))
OTHER_MARKERS = ("<", ">", "h", "d", "*")


def looks(names: Iterable[str]) -> dict[str, Look]:
    """The look of each name: fixed for the recipes of RECIPE_LOOKS, the next of the palette for any other.

    Other names take first the colours that no fixed recipe among `names` has. A name alone is drawn without dashes.
    """
    names = list(dict.fromkeys(names))
    chosen = {name: RECIPE_LOOKS[name] for name in names if name in RECIPE_LOOKS}
    taken = {look.color for look in chosen.values()}
    colors = sorted(PALETTE, key=lambda color: color in taken)
    for i, name in enumerate(name for name in names if name not in chosen):
        chosen[name] = Look(colors[i % 7], OTHER_DASHES[i % 5], OTHER_MARKERS[i % 5])
    return chosen if len(chosen) > 1 else {name: replace(look, dashes="-") for name, look in chosen.items()}


@contextmanager
def applied() -> Iterator[None]:
    """Inside this context matplotlib's settings are its defaults and our style; after it they are what they were."""
    import matplotlib.style

    with matplotlib.style.context(["default", SETTINGS]):
        yield


def figure(rows: int = 1, columns: int = 1, height: float = HEIGHT, **layout: Any) -> tuple[Any, Any]:
    """A new figure of page width, and its axes (one, or an array of them).

    `height` is in inches; `layout` goes to matplotlib's Figure.subplots (sharex, height_ratios, squeeze, ...).
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with applied():
        new = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
        FigureCanvasAgg(new)
        return new, new.subplots(rows, columns, **layout)


def legend(figure: Any, handles: Sequence[Any]) -> None:
    """Put a legend below the axes, where it covers nothing, and make the figure taller by its height."""
    if not handles:
        return
    with applied():
        # From many columns to one: the first that fits the width of the page.
        for columns in range(min(len(handles), 4), 0, -1):
            box = figure.legend(handles=handles, loc="outside lower center", ncols=columns)
            extent = box.get_window_extent(figure.canvas.get_renderer())
            if extent.width <= figure.bbox.width or columns == 1:
                break
            box.remove()
    figure.set_figheight(figure.get_figheight() + extent.height / figure.dpi)


def shown(text: str, width: int = 78, longest: int = 160) -> str:
    """The text as a figure can show it: wrapped at `width` characters, its middle left out beyond `longest`."""
    text = " ".join(text.split())
    if len(text) > longest:
        text = f"{text[: longest // 2 - 1]}…{text[-(longest // 2 - 1) :]}"
    return textwrap.fill(text, width).replace("$", r"\$")  # a bare pair of dollars would start a formula


def say_empty(axes: Any, text: str = "nothing was recorded") -> None:
    """Write into axes without data that there is none."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GREY, fontsize=10)


def whole_ticks(axis: Any) -> None:
    """Ticks at whole numbers only, for steps and exponents."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 4, 5, 10]))


def power_ticks(axis: Any) -> None:
    """Ticks 2^k on an axis that holds k."""
    whole_ticks(axis)
    axis.set_major_formatter(lambda k, _: f"$2^{{{k:g}}}$")


def key(label: str, **how: Any) -> Any:
    """An entry of a legend."""
    from matplotlib.lines import Line2D

    return Line2D([], [], label=label, **how)


def marks(axes: Any, x: Sequence[float], y: Sequence[float], **how: Any) -> None:
    """Draw markers that the frame does not cut; none at all break the layout, so they are not drawn."""
    if len(x):
        axes.plot(x, y, **{"linestyle": "none", "clip_on": False, "zorder": 4} | how)


def cross(color: str) -> dict[str, Any]:
    """The mark of a run that is not finite."""
    return {"marker": "X", "color": color, "markersize": 10, "markeredgecolor": "black", "linestyle": "none"}


def save(figure: Any, path: str | os.PathLike[str]) -> Path:
    """Write the figure as PNG and return its path; the same figure gives the same bytes.

    Missing folders are made. The file appears whole or not at all. MiniLLMError where it cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise MiniLLMError(f"figures are written as PNG, not as {path.name!r}: choose a name that ends in .png")
    picture = io.BytesIO()
    with applied():
        figure.savefig(picture, format="png", dpi=DPI, metadata={"Software": None})  # else: matplotlib's version
    return write_whole(path, picture.getvalue())
