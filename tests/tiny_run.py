"""A text, a tiny run on it, and what is in its folder: where tests of checkpoints and of the command line start."""
import random
from pathlib import Path

from minillm.experiments.options import TrainOptions

TEXT = "the cat sat on a mat and then some dog ran far from it all day long ."
SMALL = {"layers": 1, "heads": 2, "channels": 32, "context": 16, "batch": 4, "steps": 12, "warmup": 2, "eval_every": 5}


def write_text(folder: Path, words: int = 400) -> Path:
    """About four characters a word, 18 of them distinct."""
    draw = random.Random(1)
    path = folder / "text.txt"
    path.write_text(" ".join(draw.choices(TEXT.split(), k=words)), "utf-8")
    return path


def small(text: Path, **changes) -> TrainOptions:
    """The options of a run of a second."""
    return TrainOptions(**{**SMALL, "text": str(text), **changes})


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
