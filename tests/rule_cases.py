"""Inputs for every rule, away from kinks, all values on the grid of float16: where tests of all rules start."""
import numpy as np

RNG = np.random.default_rng(7)


def halves(x):
    return np.asarray(x, np.float16).astype(np.float64)


def normal(*shape, least=0.1):
    """Values of size 0.1 to about 3, so that no difference steps over a kink at 0."""
    x = RNG.standard_normal(shape)
    return halves(np.copysign(np.maximum(abs(x), least), x))


def away(*shape):
    """Values of size 0.5 and more: nearer to 0 the third derivative of 1 / x or log x is far larger than the first."""
    return normal(*shape, least=0.5)


def positive(*shape):
    return np.asarray(abs(away(*shape)))


def shares(*shape):
    """Values between 0.1 and 0.9."""
    return halves(RNG.uniform(0.1, 0.9, shape))


def ids(below, *shape):
    return RNG.integers(0, below, shape)


def mask(*shape):
    return RNG.random(shape) < 0.6


BROADCASTS = [((3, 4), (3, 4)), ((3, 4), (4,)), ((4,), (3, 4)), ((3, 1), (1, 4)), ((), (3, 4)), ((3, 4), ()),
              ((2, 1, 4), (3, 1)), ((1,), (1,)), ((1, 1), (3,)), ((2, 3, 1, 5), (1, 4, 1)), ((), ()),
              ((0, 4), (4,)), ((1, 4), (0, 1)), ((1,), (0,))]
SHAPES = [(5,), (), (3, 4), (2, 1, 3), (0,), (2, 0, 3)]
AXES = [{}, {"axis": 0}, {"axis": -1}, {"axis": 1, "keepdims": True}, {"axis": (0, 2)}, {"axis": (0, -1), "keepdims": True},
        {"keepdims": True}, {"axis": (2, 1, 0)}]
INDICES = [1, -1, slice(1, 3), slice(None, None, 2), slice(None, None, -1), slice(3, None, -2), slice(2, 2), None, ...,
           (0, slice(1, None)), (..., 0), (slice(None), None, -1), (None, ..., slice(0, 1)), (1, 2, 3), (slice(None, 2), ..., None)]
MATRICES = [((3, 4), (4, 5)), ((4,), (4, 5)), ((3, 4), (4,)), ((4,), (4,)), ((2, 3, 4), (4, 5)), ((2, 3, 4), (2, 4, 5)),
            ((4,), (2, 4, 5)), ((2, 3, 4), (4,)), ((3, 4), (2, 4, 5)), ((2, 1, 3, 4), (5, 4, 1)), ((1, 1), (1, 1)),
            ((0, 4), (4, 5)), ((3, 4), (4, 0)), ((3, 0), (0, 2))]
ROWS = [(5,), (3, 4), (2, 1, 3), (3, 1), (0, 4)]
CHANNELS = [(3, 4), (2, 3, 8), (7,), (1, 17), (0, 4)]


def of(shapes, make=normal, **static):
    """A case for each shape."""
    return [((make(*shape),), static) for shape in shapes]


def pairs(first=normal, second=normal):
    """A case for each pair of shapes that broadcast."""
    return [((first(*a), second(*b)), {}) for a, b in BROADCASTS]


def reductions():
    yield from (((normal(2, 3, 4),), axes) for axes in AXES)
    yield from of([()]) + of([(0, 3)], axis=1) + of([(4,)], axis=())


def wheres():
    yield from (((mask(*np.broadcast_shapes(a, b)), normal(*a), normal(*b)), {}) for a, b in BROADCASTS)
    yield (mask(3, 1), normal(1, 4), normal()), {}
    yield (mask(5), normal(2, 1), normal(1)), {}


def concats():
    for axis in (0, 1, 2, -1, -2, -3):
        parts = [normal(*(n if i == axis % 3 else size for i, size in enumerate((2, 3, 4)))) for n in (1, 0, 2, 5)]
        yield tuple(parts), {"axis": axis}
    yield (normal(3),), {}


def softmaxes():
    yield from of(ROWS) + of([(3, 4)], axis=0)
    yield (normal(3, 4), mask(3, 4) | np.eye(3, 4, dtype=bool)), {}
    yield (normal(3, 4), mask(4)), {}
    yield (normal(3, 4), np.array([[True], [False], [True]])), {}
    yield (normal(2, 2, 3, 3), mask(2, 1, 3, 3)), {}


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


def cross_entropies():
    yield from (((normal(*s, 5), ids(5, *s)), {}) for s in ((3,), (2, 3), (), (1,)))
    yield (normal(4, 5), np.array([1, -1, 4, -1])), {"ignore": -1}
    yield (normal(4, 5), np.array([1, 2, 2, 0])), {"ignore": 2}


def binary(make):
    yield from (((make(*s), shares(*s)), {}) for s in ((3,), (2, 3), ()))
    yield (make(4), np.array([0, 1, 1, 0])), {}


def lstms():
    for B, T, C, H in ((2, 4, 3, 2), (1, 1, 1, 1), (3, 5, 2, 4), (2, 0, 3, 2), (0, 2, 3, 2)):
        weights = tuple(halves(normal(*shape) / 2) for shape in ((4 * H, C), (4 * H, H), (4 * H,)))
        yield (normal(B, T, C), *weights), {}
        yield (normal(B, T, C), *weights, mask(B, T)), {}
        yield (normal(B, T, C), *weights[:2]), {}


CASES = {name: list(cases) for name, cases in {
    "cast": of(SHAPES), "neg": of(SHAPES), "exp": of(SHAPES), "tanh": of(SHAPES), "sigmoid": of(SHAPES), "relu": of(SHAPES),
    "gelu": of(SHAPES), "gelu_erf": of(SHAPES), "log": of(SHAPES, positive), "sqrt": of(SHAPES, positive),
    "add": pairs(), "sub": pairs(), "mul": pairs(), "div": pairs(second=away),
    "pow": pairs(positive) + [((away(4), number), {}) for number in (2.0, 3.0, -1.0, 0.0, 1.0, 2)],
    "where": wheres(), "dropout": of(SHAPES, rate=0.0) + of(SHAPES, rate=0.3),
    "sum": [*reductions(), *of([(0, 3)], axis=0), *of([(3, 0)])], "mean": reductions(), "max": reductions(),
    "transpose": [c for axes in (None, (0, 2, 1), (2, 0, 1), (-1, 0, -2)) for c in of([(2, 3, 4)], axes=axes)] + of([(), (0, 2)]),
    "reshape": [c for shape in ((6, 4), (-1,), 24, (1, 24, 1), (2, -1)) for c in of([(2, 3, 4)], shape=shape)]
               + of([(1, 1)], shape=()) + of([(0, 3)], shape=(3, 0)),
    "slice": [c for index in INDICES for c in of([(4, 3, 4)], index=index)]
             + [c for index in (..., None, ()) for c in of([()], index=index)],
    "concat": concats(),
    "embedding": [((normal(5, 3), ids(5, *s)), {}) for s in ((4,), (2, 3), (), (0,), (1, 1, 1))]
                 + [((normal(5, 3), np.array([2, 2, 2, 0])), {})],
    "softmax": softmaxes(), "log_softmax": of(ROWS) + of([(3, 4)], axis=0),
    "layer_norm": [((normal(*s), normal(s[-1]), normal(s[-1])), {}) for s in CHANNELS]
                  + [((normal(3, 4), normal(4)), {}), ((normal(2, 5), normal(5), normal(5)), {"eps": 0.5})],
    "rms_norm": [((normal(*s), normal(s[-1])), {}) for s in CHANNELS] + [((normal(2, 5), normal(5)), {"eps": 0.5})],
    "matmul": [((normal(*a), normal(*b)), {}) for a, b in MATRICES],
    "linear": [((normal(*s, 4), normal(5, 4), *bias), {})
               for s in ((3,), (2, 3), (), (2, 1, 3), (0,)) for bias in ((), (normal(5),))],
    "attention": attentions(), "lstm": lstms(), "cross_entropy": cross_entropies(),
    "fake_quantize": [c for symmetric in (True, False) for c in of([(3, 4)], lowest=-7, highest=7, rows=3, symmetric=symmetric)
                      + of([(3, 4), ()], lowest=-8, highest=7, rows=1, symmetric=symmetric)
                      + of([(2, 8)], lowest=-1, highest=1, rows=4) + of([(0, 3)], lowest=-7, highest=7, rows=0)],
    "lsq": [((normal(*shape), positive(*steps)), {"lowest": -8, "highest": 7})
            for shape, steps in (((3, 4), (3,)), ((3, 4), ()), ((2, 8), (2, 2)), ((0, 3), (0,)), ((40,), (1,)))],
    "share_of_range": [((normal(*shape), np.asarray(normal(*shares) / 100)), {"lowest": -8, "highest": 7})
                       for shape, shares in (((3, 4), (3,)), ((3, 4), ()), ((2, 8), (2, 2)), ((0, 3), (0,)), ((40,), (1,)))],
    "ternarize": of(SHAPES),
    "gumbel_sample": of(ROWS) + of(ROWS, temperature=0.5),
    "bce_with_logits": binary(normal), "bce": binary(shares),
}.items()}
