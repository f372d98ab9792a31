"""The command line: parse, call one function of experiments, print. Errors are one line and exit code 2."""
import argparse
import contextlib
import dataclasses
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from minillm import kernels
from minillm._version import __version__
from minillm.backend import usable_cores
from minillm.errors import MiniLLMError, unknown

ABOUT = {
    "layers": "transformer blocks", "heads": "attention heads", "channels": "width of the model", "context": "tokens in a window",
    "batch": "windows in a micro-batch", "steps": "optimizer attempts", "lr": "highest learning rate",
    "min_lr": "last learning rate",
    "warmup": "attempts until --lr is reached", "optimizer": "adamw or sgd", "beta1": "Adam's first decay, SGD's momentum",
    "beta2": "Adam's second decay", "weight_decay": "decoupled, on matrices only", "clip": "largest gradient norm, 0 for none",
    "dropout": "share of values dropped in training", "bias": "biases in linears and layer norms, which GPT-2 has",
    "accumulate": "micro-batches in a step",
    "accumulation": "of micro-batches: mean, sum, or as-listed, an update at each",
    "tokenizer": "char, bpe or word", "vocab": "vocabulary of the bpe or word tokenizer",
    "order": "tokens of an n-gram model's longest grams",
    "seed": "of weights, batches and dropout", "recipe": "which number formats stand where",
    "products": "recipe, or an accumulator for all matrix products: float16, bfloat16/kahan, ...",
    "loss_scale": "recipe, dynamic, pytorch, apex-amp, apex-fp16-utils, keras, or a number such as 1024 or 2^-6",
    "growth_interval": "clean steps until a dynamic scale doubles; 0: the recipe's",
    "scale_floor": "a dynamic scale's lowest value; 0: the recipe's", "eps": "the optimizer's; 0: the recipe's",
    "eval_every": "attempts between validations; 0: the last only", "watch_every": "attempts between watched ones; 0: none",
    "corpus": "text that comes with Python", "text": "a UTF-8 file to train on instead; its last tenth validates",
    "model": "gpt, seq2seq, bert, lstm or ngram",
    "task": "what is learned from examples, names with commas between: translation, reviews, ...",
    "sampling": "how often each of several tasks is drawn: size, uniform or a temperature",
    "loss_weights": "how much a target of each of several tasks counts, numbers with commas between: 1,2,1",
    "strategy": "ways to get more out of the same training",
    "labels": "how many labels of a classification are known; 0: all", "pretrain_steps": "attempts of pre-training; 0: --steps",
    "sparsity": "share of the weights that pruning takes away", "members": "models of an ensemble, teachers of a distillation",
    "augment_rate": "share of the words that augmentation changes",
}


class Answer(NamedTuple):
    """What a command says: data for --json, text for people, a line for standard error, the exit code."""

    data: dict
    text: str
    remark: str = ""
    code: int = 0


class Parser(argparse.ArgumentParser):
    """argparse, but what is wrong is said in this program's one line."""

    def error(self, message: str):
        raise MiniLLMError(f"{message}; see {self.prog} --help")


def filled(text: str) -> str:
    """The text of an option; an empty one is most likely a shell's variable that was never set."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty")
    return text


def options_class():
    """TrainOptions, imported only where a command needs it: it brings the whole engine."""
    from minillm.experiments.options import TrainOptions
    return TrainOptions


def add_options(parser: argparse.ArgumentParser) -> None:
    """Every field of TrainOptions as an option; one that is not given is left out, so that a resumed run can tell."""
    for f in dataclasses.fields(options_class()):
        name, about = f"--{f.name.replace('_', '-')}", ABOUT[f.name] + (f" (default {f.default})" if f.default != "" else "")
        if f.name == "strategy":
            parser.add_argument(name, nargs="+", type=filled, default=argparse.SUPPRESS, metavar="NAME",
                                help=f"{about}, {strategies(parser.prog)}")
        elif f.type is bool:
            parser.add_argument(name, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=about)
        else:
            read = filled if f.type is str else f.type
            parser.add_argument(name, type=read, default=argparse.SUPPRESS, metavar=f.type.__name__.upper(), help=about)


def strategies(command: str) -> str:
    """How a command takes the names of strategies, and which there are."""
    from minillm.experiments.strategies import STRATEGIES
    how = "each beside the run without it, A,B both at once" if command.endswith("compare") else "all together"
    return f"{how}: " + "; ".join(f"{name} ({strategy.about})" for name, strategy in STRATEGIES.items())


def given_options(arguments: argparse.Namespace) -> dict:
    """The training options that were named on the command line."""
    given = {f.name: getattr(arguments, f.name) for f in dataclasses.fields(options_class()) if hasattr(arguments, f.name)}
    return given | ({"strategy": ",".join(given["strategy"])} if "strategy" in given else {})


def chosen(given: dict):
    """TrainOptions with these, and the defaults of their model and task."""
    from minillm.experiments.options import options_for
    return options_for(given)


def demo(arguments) -> Answer:
    from minillm.experiments import demo
    result = demo.demo(arguments.out, quiet=arguments.quiet)
    return Answer(result, demo.describe(result))


def train(arguments) -> Answer:
    from minillm.experiments.train import fine_tune, resume, train
    given = given_options(arguments)
    if arguments.source and arguments.resume is not None:
        raise MiniLLMError("--from begins a new run and --resume goes on with one: give one of them")
    if arguments.source:
        return ending(fine_tune(arguments.source, given, arguments.out, arguments.force, arguments.quiet))
    if arguments.resume is None:
        return ending(train(chosen(given), arguments.out, arguments.force, arguments.quiet))
    run = arguments.resume or arguments.out
    if not run:
        raise MiniLLMError("--resume needs the run to go on with: minillm train --resume RUN")
    if arguments.force or (arguments.out or run) != run:
        raise MiniLLMError(f"--resume {run} goes on with that run: leave --out and --force away")
    return ending(resume(run, given, arguments.quiet))


def ending(result: dict) -> Answer:
    """How a training run ended. A loss that is not finite in float32 is an error; under a narrower recipe it is a finding."""
    data = {key: result[key] for key in ("val_loss", "diverged_at", "steps", "tokens_per_second", "parameters", "out")}
    if result["interrupted"]:
        go_on = f"minillm train --resume {result['out']}"
        return Answer(data, "", f"stopped after step {result['steps']}, checkpoint written: go on with {go_on}", 130)
    if result["diverged_at"] is not None:
        kept = f"the last good checkpoint is that of step {result['checkpoint_step']}" if result["checkpoint_step"] \
            else "no checkpoint was written before"
        advice = "try a lower --lr" + ("" if result["float32"] else " or another --recipe")
        where = f"not finite at step {result['diverged_at']}: {result['first_not_finite']}"
        return Answer(data, "", f"{where}; {kept}; {advice}", 2 if result["float32"] else 0)
    return Answer(data, f"validation loss {result['val_loss']:.4f} nats a token after {result['steps']} steps, "
                  f"{result['tokens_per_second']:,} tokens/s, {result['parameters']:,} parameters; the run is in {result['out']}")


def compare(arguments) -> Answer:
    from minillm.experiments import compare
    recipes = [name.strip() for name in arguments.recipes.split(",") if name.strip()]
    given = given_options(arguments)
    models = [name.strip() for name in arguments.models.split(",") if name.strip()] or [given.get("model", "gpt")]
    ways = dict.fromkeys(["", *getattr(arguments, "strategy", [])])
    options = [chosen(given | {"model": name, "strategy": way}) for name in models for way in ways]
    result = compare.compare(recipes, options, arguments.seeds, arguments.out, arguments.quiet)
    return Answer(result, compare.describe(result))


def evaluate(arguments) -> Answer:
    from minillm.experiments.evaluate import evaluate
    result = evaluate(arguments.run)
    several = len(result["metrics"]) > 1
    lines = [f"{f'{task} ' if several else ''}{key:20}{value}" for task, found in result["metrics"].items()
             for key, value in found.items()]
    return Answer(result, "\n".join(lines))


def sample(arguments) -> Answer:
    from minillm.experiments.sample import sample
    result = sample(arguments.run, arguments.prompt, arguments.tokens, arguments.temperature, arguments.top_k, arguments.seed,
                    arguments.weights, arguments.int8_cache, arguments.beam, arguments.quiet)
    return Answer(result, result["text"])


def quantize(arguments) -> Answer:
    from minillm.conversion.convert import Conversion
    from minillm.experiments import quantize
    how = Conversion(arguments.scheme, arguments.method, arguments.granularity, arguments.group)
    result = quantize.quantize(arguments.run, how, arguments.calibrate, arguments.out, arguments.force, arguments.leave_one_out,
                               arguments.quiet)
    return Answer(result, quantize.describe(result))


def bits(arguments) -> Answer:
    from minillm.experiments import bits
    result = bits.bits(arguments.runs, arguments.granularity, arguments.group, arguments.calibrate, arguments.out, arguments.quiet)
    return Answer(result, bits.describe(result))


def recipes(arguments) -> Answer:
    from minillm.experiments import recipes
    return Answer(recipes.recipes(arguments.name), recipes.describe(arguments.name))


def inspect(arguments) -> Answer:
    from minillm.experiments import inspect
    result = inspect.inspect(arguments.run, arguments.format, arguments.steps, arguments.out)
    return Answer(result, inspect.describe(result))


def formats(arguments) -> Answer:
    from minillm.experiments import formats
    if arguments.value is not None:
        result = formats.one_value(arguments.name, arguments.value)
        return Answer(result, formats.describe_value(result))
    if arguments.name is not None:
        result = formats.one_format(arguments.name)
        return Answer(result, formats.describe_format(result))
    result = formats.all_formats()
    return Answer(result, formats.describe_all(result))


def bench(arguments) -> Answer:
    from minillm.experiments import bench, bench_tables
    result = bench.bench(arguments.what, arguments.pools, arguments.quiet, arguments.out, arguments.readme)
    return Answer(result, bench_tables.describe(result))


COMMANDS: dict[str, tuple[Callable, str]] = {
    "demo": (demo, "train one small GPT under five recipes: a table and four figures"),
    "train": (train, "train a model on a text or on tasks into a run folder"),
    "compare": (compare, "the same model under several recipes and seeds: a table and figures"),
    "evaluate": (evaluate, "how good a run is: validation loss, or the scores of its tasks"),
    "sample": (sample, "text from a run"),
    "quantize": (quantize, "a run as codes of 8, 4, 3, 2 bits, or ternary: a model folder, its bytes, its loss"),
    "bits": (bits, "the curve of bits against loss: runs as codes of 8 to 2 bits, by every method"),
    "recipes": (recipes, "which number formats stand where: all recipes, or one of them op by op"),
    "inspect": (inspect, "what every layer's numbers look like: underflow, overflow, headroom, and what other formats would do"),
    "formats": (formats, "table of number formats; one format; the bits of one value in it"),
    "bench": (bench, "speed and memory here, next to peers that are installed"),
}


def parser_of(name: str) -> Parser:
    """The parser of one command."""
    parser = Parser(prog=f"minillm {name}", description=COMMANDS[name][1], allow_abbrev=False)
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output, nothing else there")
    if name in ("evaluate", "sample", "inspect", "quantize"):
        parser.add_argument("run", metavar="RUN", help="a run folder")
    if name == "bits":
        parser.add_argument("runs", metavar="RUN", nargs="+", help="run folders, best of the same training with several seeds")
    if name == "recipes":
        parser.add_argument("name", metavar="NAME", nargs="?", default="", help="one recipe, op by op (default: all, a line each)")
    if name in ("train", "compare"):
        add_options(parser)
    if name in ("train", "evaluate", "sample", "inspect", "quantize", "bits"):
        parser.add_argument("--threads", type=int, default=0, help="that share the work (default: one for each core)")
    if name == "train":
        parser.add_argument("--out", type=filled, metavar="RUN", help="the run folder to make (default runs/CORPUS-RECIPE-SEED)")
        parser.add_argument("--resume", nargs="?", const="", metavar="RUN", help="go on with this run, or with --out")
        parser.add_argument("--from", dest="source", type=filled, metavar="RUN", help="begin with weights and options of this run")
        parser.add_argument("--force", action="store_true", help="replace the run that is there")
    if name in ("demo", "compare", "bits"):
        parser.add_argument("--out", type=filled, default="figures", metavar="DIR", help="folder for figures (default figures)")
    if name == "compare":
        parser.add_argument("--recipes", default="float32,bfloat16-mixed,float16-mixed", metavar="A,B", help="default %(default)s")
        parser.add_argument("--models", default="", metavar="A,B", help="several models, each with its own task and defaults")
        parser.add_argument("--seeds", type=int, default=1, metavar="N", help="runs of each, with seeds --seed, --seed + 1, ...")
    if name == "quantize":
        parser.add_argument("--scheme", type=filled, default="int8", metavar="NAME",
                            help="int8, int4, int3, int2 or ternary (default int8)")
        parser.add_argument("--method", type=filled, default="rtn", metavar="NAME",
                            help="rtn, gptq, gptq-act, awq, smoothquant, outliers, dynamic or full-integer "
                                 "(default rtn, round to nearest)")
        parser.add_argument("--leave-one-out", action="store_true", help="say what each layer costs: the loss with and without it")
        parser.add_argument("--out", type=filled, required=True, metavar="DIR", help="the model folder to make")
        parser.add_argument("--force", action="store_true", help="replace the run that is there")
    if name in ("quantize", "bits"):
        granularity = "channel" if name == "quantize" else "group"
        parser.add_argument("--granularity", type=filled, default=granularity, metavar="NAME",
                            help="what has a scale of its own: tensor, channel (a row) or group (default %(default)s)")
        parser.add_argument("--group", type=int, default=32, metavar="N", help="values in a group (default 32)")
        parser.add_argument("--calibrate", type=int, default=64, metavar="N", help="windows of text to look at (default 64)")
    if name == "inspect":
        parser.add_argument("--format", type=filled, metavar="NAME", help="what if all were in it (default: each format, in short)")
        parser.add_argument("--steps", type=int, default=1, metavar="N", help="steps to watch (default 1)")
        parser.add_argument("--out", type=filled, metavar="DIR", help="folder for inspect.png (default: the run)")
    if name == "formats":
        parser.add_argument("name", nargs="?", metavar="NAME", help="of a format, or eXmY for X exponent and Y mantissa bits")
        parser.add_argument("value", nargs="?", metavar="VALUE", help="a number such as 0.1, 2^-24, 0x1.8p3, inf or nan")
        parser._negative_number_matcher = re.compile(r"-[\d.in]")               # -2^-3 and -inf are values, not options
    if name == "bench":
        parser.add_argument("what", metavar="NAME", help="matmul, rowwise, cast, step, generate, or all")
        parser.add_argument("--threads", dest="pools", type=int, metavar="N", help="of every pool (default: one a core)")
        parser.add_argument("--out", type=filled, metavar="DIR", help="folder for bench-matmul.png, rate against size")
        parser.add_argument("--readme", type=filled, metavar="FILE", help="put the tables of `all` between its two marks")
    if name == "sample":
        parser.add_argument("--prompt", metavar="TEXT", help="text to continue (default a line's end)")
        parser.add_argument("--weights", type=filled, metavar="NAME", help="float32, float16 or int8 (default: as the recipe says)")
        parser.add_argument("--int8-cache", action="store_true", help="hold keys and values as int8 codes, a quarter of the bytes")
        for option, kind, default, about in (
                ("tokens", int, 200, "how many"), ("beam", int, 1, "answers kept while they grow, by a model that answers"),
                ("temperature", float, 0.8, "0: the most likely token"),
                ("top-k", int, 0, "only the k most likely; 0: all"), ("seed", int, 0, "of the drawing")):
            parser.add_argument(f"--{option}", type=kind, default=default, help=f"{about} (default {default})")
    return parser


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Inside, the pool that products run in has `count` threads, 0: one for each core. That is numba's, without kernels BLAS's.

    The other pool has one: where both had several, they spun against each other, and a step took three to five times as long.
    """
    if not 0 <= count <= 1024:                   # a pool takes fewer where it was made for fewer
        raise MiniLLMError(f"--threads is {count}: give a number up to 1024, or 0 for one for each core")
    from threadpoolctl import threadpool_limits
    with contextlib.ExitStack() as undo:
        undo.enter_context(threadpool_limits(1 if kernels.enabled() else count or usable_cores(), "blas"))
        if count and kernels.enabled():
            pool = kernels.load("pool")
            undo.callback(pool.set_threads, pool.threads())
            pool.set_threads(min(count, pool.largest()))
        yield


def usage() -> str:
    return "\n".join(["usage: minillm COMMAND [options]    (minillm COMMAND --help lists them)", "",
                      *(f"  {name:10}{about}" for name, (_, about) in COMMANDS.items())])


def carry_out(argv: Sequence[str]) -> int:
    """Parse and run one command; returns the exit code."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if argv else 2
    if argv[0] == "--version":
        print(f"minillm {__version__}")
        return 0
    if argv[0] not in COMMANDS:
        raise unknown("command", argv[0], COMMANDS)
    parser = parser_of(argv[0])
    arguments, rest = parser.parse_known_args(argv[1:])
    if rest:
        raise unknown("option", rest[0].partition("=")[0], parser._option_string_actions)
    with threads(getattr(arguments, "threads", 0)):
        answer = COMMANDS[argv[0]][0](arguments)
    if arguments.json:
        print(json.dumps(answer.data, allow_nan=False))
    elif answer.text:
        print(answer.text)
    if answer.remark:
        report(answer.remark)
    sys.stdout.flush()                           # here, where a reader that is gone is no error
    return answer.code


def report(text: str) -> None:
    """One line on standard error, whatever the text."""
    print(f"minillm: {' '.join(text.split())}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """The console script: one line for every error, 2 for wrong input, 130 for Ctrl-C."""
    try:
        return carry_out(sys.argv[1:] if argv is None else argv)
    except MiniLLMError as error:
        report(str(error))
        return 2
    except KeyboardInterrupt:
        report("stopped")
        return 130
    except BrokenPipeError:                      # whoever read the output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:                     # what the commands do not expect: a path that is too long, a disk that is full
        report(f"{error.filename or 'a file'}: {error.strerror or error}; check the path, its permissions and the free space")
        return 2
    except MemoryError as error:
        report(f"out of memory ({error}): lower --layers, --channels, --context, --batch or --accumulate")
        return 2


if __name__ == "__main__":
    sys.exit(main())
