"""The steps of attention that stay in vector registers: a tile of scores and what becomes of it, rows, and squares on their side.

A tile is ROWS x WIDTH sums, enough of them to hide the four cycles that each waits for its last addition. The left operand
is read a value at a time, the right one and the result a row at a time; sums run over the depth in order. Arrays are
flat, an offset follows each.

In a tile of scores a row is a key and a lane is a query: so a query's largest score, its sum and its correction are a lane of a
vector, and nothing is ever added across lanes. `ahead` is the number of the tile's first key less that of its first query.
"""
from numba import types
from numba.extending import intrinsic

from minillm.kernels.vectors import (
    HALVES,
    INT,
    INTS,
    LANES,
    LONG,
    VECTOR,
    at,
    constant,
    emitter,
    exponential,
    integers,
    larger,
    load,
    multiply_add,
    repeat,
    spread,
    store,
)

ROWS, VECTORS = LANES // 2, 2                    # 16 of AVX-512's 32 registers hold sums, or 8 of 16
WIDTH = VECTORS * LANES
N = types.intp


def sums_of(b, left, row_step, depth_step, right, right_step, depth, sums):
    """Sums += sum over k < depth of left[row, k] right[k]; row by row, VECTORS vectors each."""
    def body(k, carried):
        left, right, *sums = carried
        columns = [load(b, right, v * LANES) for v in range(VECTORS)]
        for row in range(ROWS):
            value = spread(b, b.load(at(b, left, b.mul(row_step, LONG(row)))))
            for v, column in enumerate(columns):
                sums[row * VECTORS + v] = multiply_add(b, value, column, sums[row * VECTORS + v])
        return [at(b, left, depth_step), at(b, right, right_step), *sums]
    return repeat(b, depth, [left, right, *sums], body)[2:]


def places_of(b, tile, step):
    """Where the vectors of a tile lie in memory."""
    return [at(b, at(b, tile, b.mul(step, LONG(row))), v * LANES) for row in range(ROWS) for v in range(VECTORS)]


def product_tile(turned):
    """A tile of out += left @ right; left is [row, k] with rows WIDTH apart or, turned, [k, row]; other rows are `step` apart."""
    row_step, depth_step = (1, WIDTH) if turned else (WIDTH, 1)

    @intrinsic
    def tile(typingctx, left, l, right, r, step, out, o, depth):
        def emit(b, left, l, right, r, step, out, o, depth):
            places = places_of(b, at(b, out, o), step)
            store_all(b, sums_of(b, at(b, left, l), LONG(row_step), depth_step, at(b, right, r), step, depth,
                                 [load(b, place) for place in places]), places)
        return types.void(left, N, right, N, N, out, N, N), emitter(emit)
    return tile


def store_all(b, vectors, places):
    for vector, place in zip(vectors, places, strict=True):
        store(b, vector, place)


def scores_of(b, keys, k, step, queries, depth):
    """A tile of keys[key, d] queries[d, query]: rows of keys are `step` apart, those of queries WIDTH."""
    return sums_of(b, at(b, keys, k), step, 1, queries, LONG(WIDTH), depth, [constant(0)] * (ROWS * VECTORS))


def hidden(b, edge, key, limits, values, instead):
    """The tile, whose first key is number `key`, with `instead` where a key's number reaches its query's limit."""
    if not edge:
        return values
    keys = [spread(b, b.add(b.trunc(key, INT), INT(row))) for row in range(ROWS)]
    ends = [load(b, limits, v * LANES, INTS) for v in range(VECTORS)]
    seen = [b.icmp_signed("<", number, end) for number in keys for end in ends]
    return [b.select(s, value, constant(instead)) for s, value in zip(seen, values, strict=True)]


def lanes_of(b, numbers):
    """A number for each query."""
    return [load(b, numbers, v * LANES) for v in range(VECTORS)]


def store_lanes(b, vectors, numbers):
    for v, vector in enumerate(vectors):
        store(b, vector, numbers, v * LANES)


def score_tile(edge):
    """A tile of scores, -inf where hidden; `top` becomes the largest so far."""
    @intrinsic
    def tile(typingctx, keys, k, step, queries, depth, out, o, top, key, limits):
        def emit(b, keys, k, step, queries, depth, out, o, top, key, limits):
            scores = hidden(b, edge, key, limits, scores_of(b, keys, k, step, queries, depth), -float("inf"))
            store_all(b, scores, places_of(b, at(b, out, o), LONG(WIDTH)))
            most = lanes_of(b, top)
            for i, score in enumerate(scores):
                most[i % VECTORS] = larger(b, score, most[i % VECTORS])
            store_lanes(b, most, top)
        return types.void(keys, N, N, queries, N, out, N, top, N, limits), emitter(emit)
    return tile


def weight_tile(edge):
    """A tile of weights, exp(scores - top) share, 0 where hidden."""
    @intrinsic
    def tile(typingctx, keys, k, step, queries, depth, out, o, top, share, key, limits):
        def emit(b, keys, k, step, queries, depth, out, o, top, share, key, limits):
            scores = scores_of(b, keys, k, step, queries, depth)
            lanes = zip(scores, lanes_of(b, top) * ROWS, lanes_of(b, share) * ROWS, strict=True)
            weights = [b.fmul(exponential(b, b.fsub(score, most)), part) for score, most, part in lanes]
            store_all(b, hidden(b, edge, key, limits, weights, 0), places_of(b, at(b, out, o), LONG(WIDTH)))
        return types.void(keys, N, N, queries, N, out, N, top, share, N, limits), emitter(emit)
    return tile


def cotangent_tile(edge):
    """A tile of the weights' cotangents, 0 where hidden; `mean` grows by the sum over its keys of weights times cotangents."""
    @intrinsic
    def tile(typingctx, values, k, step, cotangents, depth, out, o, weights, mean, key, limits):
        def emit(b, values, k, step, cotangents, depth, out, o, weights, mean, key, limits):
            found = hidden(b, edge, key, limits, scores_of(b, values, k, step, cotangents, depth), 0)
            store_all(b, found, places_of(b, at(b, out, o), LONG(WIDTH)))
            means = lanes_of(b, mean)
            for i, place in enumerate(places_of(b, at(b, weights, o), LONG(WIDTH))):
                means[i % VECTORS] = multiply_add(b, load(b, place), found[i], means[i % VECTORS])
            store_lanes(b, means, mean)
        return types.void(values, N, N, cotangents, N, out, N, weights, mean, N, limits), emitter(emit)
    return tile


@intrinsic
def exponentials(typingctx, scores, count, top, total):
    """Scores of `count` keys become exp(scores - top); `total` grows by their sum."""
    def emit(b, scores, count, top, total):
        tops = lanes_of(b, top)

        def body(key, totals):
            row, new = at(b, scores, b.mul(key, LONG(WIDTH))), []
            for v in range(VECTORS):
                e = exponential(b, b.fsub(load(b, row, v * LANES), tops[v]))
                store(b, e, row, v * LANES)
                new.append(b.fadd(totals[v], e))
            return new
        store_lanes(b, repeat(b, count, lanes_of(b, total), body), total)
    return types.void(scores, N, top, total), emitter(emit)


@intrinsic
def score_cotangents(typingctx, cotangents, weights, o, count, mean):
    """Cotangents of the weights of `count` keys become those of scores, weights (cotangents - mean)."""
    def emit(b, cotangents, weights, o, count, mean):
        means = lanes_of(b, mean)

        def body(key, _):
            row = b.add(o, b.mul(key, LONG(WIDTH)))
            for v in range(VECTORS):
                place = b.add(row, LONG(v * LANES))
                store(b, b.fmul(load(b, weights, place), b.fsub(load(b, cotangents, place), means[v])), cotangents, place)
            return []
        repeat(b, count, [], body)
    return types.void(cotangents, weights, N, N, mean), emitter(emit)


@intrinsic
def scale_row(typingctx, row, r, vectors, factor):
    """A row of so many vectors times a number."""
    def emit(b, row, r, vectors, factor):
        factor = spread(b, factor)

        def body(turn, _):
            place = b.add(r, b.mul(turn, LONG(LANES)))
            store(b, b.fmul(load(b, row, place), factor), row, place)
            return []
        repeat(b, vectors, [], body)
    return types.void(row, N, N, types.float32), emitter(emit)


@intrinsic
def move(typingctx, source, s, out, o, factor):
    """LANES values times a number, from float32 or float16 bits to float32 or float16 bits, rounded once."""
    def emit(b, source, s, out, o, factor):
        half_in, half_out = (kind.dtype == types.uint16 for kind in kinds)
        x = load(b, source, s, HALVES if half_in else VECTOR)
        x = b.fmul(b.fpext(x, VECTOR) if half_in else x, spread(b, factor))
        store(b, b.fptrunc(x, HALVES) if half_out else x, out, o)
    kinds = source, out
    return types.void(source, N, out, N, types.float32), emitter(emit)


@intrinsic
def turn_square(typingctx, x, i, x_step, y, j, y_step):
    """LANES x LANES values on their side: halves of 1, 2, 4, ... lanes change places between pairs of rows."""
    def emit(b, x, i, x_step, y, j, y_step):
        rows = [load(b, x, b.add(i, b.mul(x_step, LONG(row)))) for row in range(LANES)]
        for width in (w for w in (1, 2, 4, 8) if w < LANES):
            low = integers(LANES + lane - width if lane & width else lane for lane in range(LANES))
            high = integers(LANES + lane if lane & width else lane + width for lane in range(LANES))
            for row in (row for row in range(LANES) if not row & width):
                pair = rows[row], rows[row + width]
                rows[row], rows[row + width] = b.shuffle_vector(*pair, low), b.shuffle_vector(*pair, high)
        for row in range(LANES):
            store(b, rows[row], y, b.add(j, b.mul(y_step, LONG(row))))
    return types.void(x, N, N, y, N, N), emitter(emit)
