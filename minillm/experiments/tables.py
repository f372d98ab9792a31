"""Plain text tables."""
from collections.abc import Sequence


def table(head: Sequence[str], rows: Sequence[Sequence], left: int = 1) -> str:
    """Columns as wide as their widest entry; the first `left` of them to the left, the others to the right."""
    cells = [[str(c) for c in row] for row in (head, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]

    def line(row):
        return "  ".join(c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))).rstrip()

    lines = [line(row) for row in cells]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def loss_text(result: dict) -> str:
    """A validation loss in nats a token, or where the run stopped being finite."""
    return f"{result['val_loss']:.4f}" if result["val_loss"] is not None else f"not finite, step {result['diverged_at']}"
