"""Inputs for every rule, away from kinks, all values on the grid of float16: where tests of all rules start."""
import contextlib
import inspect

import numpy as np
import pytest

RNG = np.random.default_rng(7)


def halves(x):
    return np.asarray(x, np.float16).astype(np.float64)


def normal(*shape, least=0.1):
    """Values of size 0.1 to about 3, so that no difference steps over a kink at 0."""
    x = RNG.standard_normal(shape)
    return halves(np.copysign(np.maximum(abs(x), least), x))


def positive(*shape):
    """Values from 0.5: nearer to 0 the third derivative of a logarithm is far larger than the first."""
    return np.asarray(abs(normal(*shape, least=0.5)))


def shares(*shape):
    """Values between 0.1 and 0.9."""
    return halves(RNG.uniform(0.1, 0.9, shape))


def ids(below, *shape):
    return RNG.integers(0, below, shape)


def mask(*shape):
    return RNG.random(shape) < 0.6


BROADCASTS = [((3, 4), (3, 4)), ((3, 4), (4,)), ((4,), (3, 4)), ((3, 1), (1, 4)), ((), (3, 4)), ((3, 4), ()), ((2, 1, 4), (3, 1)),
              ((1,), (1,)), ((1, 1), (3,)), ((2, 3, 1, 5), (1, 4, 1)), ((), ()), ((0, 4), (4,)), ((1, 4), (0, 1)), ((1,), (0,))]
SHAPES = [(5,), (), (3, 4), (2, 1, 3), (0,), (2, 0, 3)]
AXES = [{}, {"axis": 0}, {"axis": -1}, {"axis": 1, "keepdims": True}, {"axis": (0, 2)}, {"axis": (0, -1), "keepdims": True},
        {"keepdims": True}, {"axis": (2, 1, 0)}]
INDICES = [1, -1, slice(1, 3), slice(None, None, 2), slice(None, None, -1), slice(3, None, -2), slice(2, 2), None, ...,
           (0, slice(1, None)), (..., 0), (slice(None), None, -1), (None, ..., slice(0, 1)), (1, 2, 3), (slice(None, 2), ..., None)]
MATRICES = [((3, 4), (4, 5)), ((4,), (4, 5)), ((3, 4), (4,)), ((4,), (4,)), ((2, 3, 4), (4, 5)), ((2, 3, 4), (2, 4, 5)), ((4,), (2, 4, 5)),
            ((2, 3, 4), (4,)), ((3, 4), (2, 4, 5)), ((2, 1, 3, 4), (5, 4, 1)), ((1, 1), (1, 1)), ((0, 4), (4, 5)), ((3, 4), (4, 0)), ((3, 0), (0, 2))]

pairs = [((normal(*a), normal(*b)), {}) for a, b in BROADCASTS]
each = [((normal(*s),), {}) for s in SHAPES]
rows = [((normal(*s),), {}) for s in [(5,), (3, 4), (2, 1, 3), (3, 1), (0, 4)]]


def attentions():
    q, k, v, long = (normal(2, T, 6) for T in (4, 4, 4, 7))
    seen = mask(2, 1, 4, 4) | np.eye(4, dtype=bool)
    yield (q, k, v), {"heads": 2}
    yield (q, k, v), {"heads": 1, "causal": False}
    yield (q, k, v), {"heads": 6}
    yield (q[:, :3], long, long[:, ::-1].copy()), {"heads": 3}                 # cached: 3 queries at the right of 7 keys
    yield (long, k, v), {"heads": 2}                                           # the first 3 queries see nothing
    yield (q, k, v, seen), {"heads": 2}
    yield (q, k, v, mask(4, 4)), {"heads": 2, "causal": False}
    yield (q, k, v, np.zeros((2, 1, 1, 4), bool)), {"heads": 2, "causal": False}
    yield (q[:, :0], k, v), {"heads": 2}
    yield (q[:0], k[:0], v[:0]), {"heads": 2}
    yield (q[:, :1], k[:, :1], v[:, :1]), {"heads": 2}


CASES = {
    "cast": each, "neg": each, "exp": each, "tanh": each, "sigmoid": each, "relu": each, "gelu": each,
    "log": [((positive(*s),), {}) for s in SHAPES], "sqrt": [((positive(*s),), {}) for s in SHAPES],
    "add": pairs, "sub": pairs, "mul": pairs,
    "div": [((normal(*a), normal(*b, least=0.5)), {}) for a, b in BROADCASTS],
    "pow": [((positive(*a), normal(*b)), {}) for a, b in BROADCASTS]
           + [((normal(4, least=0.5), n), {}) for n in (2.0, 3.0, -1.0, 0.0, 1.0, 2)],
    "where": [((mask(*np.broadcast_shapes(a, b)), normal(*a), normal(*b)), {}) for a, b in BROADCASTS]
             + [((mask(3, 1), normal(1, 4), normal()), {}), ((mask(5), normal(2, 1), normal(1)), {})],
    "dropout": [((normal(*s),), {"rate": rate}) for s in SHAPES for rate in (0.0, 0.3)],
    "sum": [((normal(2, 3, 4),), a) for a in AXES] + [((normal(),), {}), ((normal(0, 3),), {"axis": 0}), ((normal(3, 0),), {}), ((normal(4),), {"axis": ()})],
    "mean": [((normal(2, 3, 4),), a) for a in AXES] + [((normal(),), {}), ((normal(0, 3),), {"axis": 1}), ((normal(4),), {"axis": ()})],
    "max": [((normal(2, 3, 4),), a) for a in AXES] + [((normal(),), {}), ((normal(0, 3),), {"axis": 1}), ((normal(4),), {"axis": ()})],
    "transpose": [((normal(2, 3, 4),), {"axes": a}) for a in (None, (0, 2, 1), (2, 0, 1), (-1, 0, -2))] + [((normal(),), {}), ((normal(0, 2),), {})],
    "reshape": [((normal(2, 3, 4),), {"shape": s}) for s in ((6, 4), (-1,), 24, (1, 24, 1), (2, -1))] + [((normal(1, 1),), {"shape": ()}), ((normal(0, 3),), {"shape": (3, 0)})],
    "slice": [((normal(4, 3, 4),), {"index": i}) for i in INDICES] + [((normal(),), {"index": i}) for i in (..., None, ())],
    "concat": [(tuple(normal(*(n if i == axis % 3 else s for i, s in enumerate((2, 3, 4)))) for n in (1, 0, 2, 5)), {"axis": axis})
               for axis in (0, 1, 2, -1, -2, -3)] + [((normal(3),), {})],
    "embedding": [((normal(5, 3), ids(5, *s)), {}) for s in ((4,), (2, 3), (), (0,), (1, 1, 1))] + [((normal(5, 3), np.array([2, 2, 2, 0])), {})],
    "softmax": rows + [((normal(3, 4), mask(3, 4) | np.eye(3, 4, dtype=bool)), {}), ((normal(3, 4), mask(4)), {}), ((normal(3, 4),), {"axis": 0}),
                       ((normal(3, 4), np.array([[True], [False], [True]])), {}), ((normal(2, 2, 3, 3), mask(2, 1, 3, 3)), {})],
    "log_softmax": [*rows, ((normal(3, 4),), {"axis": 0})],
    "layer_norm": [((normal(*s), normal(s[-1]), normal(s[-1])), {}) for s in ((3, 4), (2, 3, 8), (7,), (1, 17), (0, 4))]
                  + [((normal(3, 4), normal(4)), {}), ((normal(2, 5), normal(5), normal(5)), {"eps": 0.5})],
    "rms_norm": [((normal(*s), normal(s[-1])), {}) for s in ((3, 4), (2, 3, 8), (7,), (1, 3), (0, 4))] + [((normal(2, 5), normal(5)), {"eps": 0.5})],
    "matmul": [((normal(*a), normal(*b)), {}) for a, b in MATRICES],
    "linear": [((normal(*s, 4), normal(5, 4), *bias), {}) for s in ((3,), (2, 3), (), (2, 1, 3), (0,)) for bias in ((), (normal(5),))],
    "attention": list(attentions()),
    "cross_entropy": [((normal(*s, 5), ids(5, *s)), {}) for s in ((3,), (2, 3), (), (1,))]
                     + [((normal(4, 5), np.array([1, -1, 4, -1])), {"ignore": -1}), ((normal(4, 5), np.array([1, 2, 2, 0])), {"ignore": 2})],
    "bce_with_logits": [((normal(*s), shares(*s)), {}) for s in ((3,), (2, 3), ())] + [((normal(4), np.array([0, 1, 1, 0])), {})],
    "bce": [((shares(*s), shares(*s)), {}) for s in ((3,), (2, 3), ())] + [((shares(4), np.array([0, 1, 1, 0])), {})],
}


@contextlib.contextmanager
def told(name, inputs, static):
    """An error inside tells which case it was."""
    try:
        yield
    except Exception as error:
        error.add_note(f"case {name}({', '.join(str(np.shape(x)) for x in inputs)}, {static})")
        raise


def each_case(test):
    """Run a test(name, inputs, static, ...) on all cases of each rule: one test a rule."""
    def all_cases(name, **more):
        for inputs, static in CASES[name]:
            with told(name, inputs, static):
                test(name, inputs, static, **more)
    more = list(inspect.signature(test).parameters.values())[3:]
    all_cases.__signature__ = inspect.Signature([inspect.Parameter("name", inspect.Parameter.POSITIONAL_OR_KEYWORD), *more])
    all_cases.__name__, all_cases.__doc__, all_cases.pytestmark = test.__name__, test.__doc__, getattr(test, "pytestmark", [])
    return pytest.mark.parametrize("name", CASES)(all_cases)
