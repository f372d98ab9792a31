"""Plain text tables."""
from collections.abc import Sequence


def table(head: Sequence[str], rows: Sequence[Sequence]) -> str:
    """Columns as wide as their widest entry; the first to the left, the others to the right."""
    cells = [[str(c) for c in row] for row in (head, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]

    def line(row):
        return "  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))

    lines = [line(row) for row in cells]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def loss_text(result: dict) -> str:
    """A validation loss in nats a token, or where the run stopped being finite."""
    return f"{result['val_loss']:.4f}" if result["val_loss"] is not None else f"not finite, step {result['diverged_at']}"
