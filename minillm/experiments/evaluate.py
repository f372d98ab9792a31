"""The validation loss of a run, computed anew from its checkpoint."""
import math
from pathlib import Path

from minillm.experiments.run_folder import RunFolder, load_run
from minillm.training.evaluation import validation_loss
from minillm.training.trainer import finite_or_none


def evaluate(path: str | Path) -> dict:
    """{"metrics": {"language_model": {"val_loss" (nats a token), "perplexity", "bits_per_character", "tokens"}}}."""
    model, _, options = load_run(path)
    data = RunFolder(Path(path)).read_data(options)
    loss, tokens = validation_loss(model, data.validation)
    bits = loss / data.characters_per_token / math.log(2)
    perplexity = math.exp(loss) if loss < 700 else math.inf
    return {"metrics": {"language_model": {"val_loss": finite_or_none(loss), "perplexity": finite_or_none(perplexity),
                                           "bits_per_character": finite_or_none(bits), "tokens": tokens}}}
