"""How good a run is, computed anew from its checkpoint."""
from pathlib import Path

from minillm.experiments.run_folder import RunFolder, load_run


def evaluate(path: str | Path) -> dict:
    """{"metrics": {task: {score: value}}}; of a run on a text, {"language_model": {"val_loss", "perplexity", ...}}."""
    model, _, options = load_run(path)
    return {"metrics": RunFolder(Path(path)).read_data(options).metrics(model)}
