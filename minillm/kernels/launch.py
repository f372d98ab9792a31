"""Tasks handed to numba's pool of threads directly: what `prange` comes to, with a task's machine code made twice, not four times.

`prange` compiles its body into a function for the pool, a wrapper around that and the function that calls it, each time with all
that the body calls: half of the minute that a training run had to wait for its kernels. Here the pool's own entry is called, the
C function that prange's code ends in.

Each thread has a range of tasks of its own, always the same, so that it finds in its cache what it had there before: taken from
one queue, attention took a quarter longer. A thread that has done its own helps the others.
"""
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.ufunc.parallel import _launch_threads

from minillm.kernels.scalars import JIT

_launch_threads()                                # it also tells LLVM where the pool's functions are
TASK = JIT | {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}            # for functions that kernels alone call
ALONE = 4                                        # so few tasks end sooner than the pool's threads have begun, after 3 us
LINE = 8                                         # words in a cache line: counters do not share one
WORD, BYTES = ir.IntType(64), ir.IntType(8).as_pointer()
WORDS, POINTERS = WORD.as_pointer(), BYTES.as_pointer()
BODY = ir.FunctionType(ir.VoidType(), [POINTERS, WORDS, WORDS, BYTES])         # arrays, counts, steps, data: a NumPy gufunc's loop


def count_up(b, body, first, end, work):
    """Emit work(number) for first <= number < end, both words, in the function `body`."""
    before, test, inside, after = b.block, *(body.append_basic_block() for _ in range(3))
    b.branch(test)
    b.position_at_end(test)
    number = b.phi(WORD)
    number.add_incoming(first, before)
    b.cbranch(b.icmp_signed("<", number, end), inside, after)
    b.position_at_end(inside)
    work(number)
    number.add_incoming(b.add(number, WORD(1)), b.block)
    b.branch(test)
    b.position_at_end(after)


def start_of(b, part, parts, tasks):
    """The first task of a thread's range."""
    return b.sdiv(b.mul(part, tasks), parts)


def thread_body(module, name, room_type, work):
    """What the pool calls for each thread: work(builder, number, values) on its own range, then on others."""
    body = ir.Function(module, BODY, name)
    body.linkage = "internal"
    body.attributes.add("noinline")              # it is called in two places
    b = ir.IRBuilder(body.append_basic_block())
    room = b.bitcast(b.load(body.args[0]), room_type)
    tasks, threads, counters, values = (b.load(cgutils.gep_inbounds(b, room, 0, i)) for i in range(4))
    me = b.ptrtoint(b.load(cgutils.gep_inbounds(b, body.args[0], 1)), WORD)    # the pool adds a thread's number to this "array"

    def help_with(turn):
        part = b.srem(b.add(me, turn), threads)
        counter, end = b.gep(counters, [b.mul(part, WORD(LINE))]), start_of(b, b.add(part, WORD(1)), threads, tasks)
        test, inside, after = (body.append_basic_block() for _ in range(3))
        b.branch(test)
        b.position_at_end(test)
        number = b.atomic_rmw("add", counter, WORD(1), "monotonic")
        b.cbranch(b.icmp_signed("<", number, end), inside, after)
        b.position_at_end(inside)
        work(b, number, values)
        b.branch(test)
        b.position_at_end(after)
    count_up(b, body, WORD(0), threads, help_with)
    b.ret_void()
    return body


def run_body(b, body, room, threads, count):
    """Call the body once for each thread, through the pool if there is more than one."""
    arrays, steps = (cgutils.alloca_once(b, kind, 2) for kind in (BYTES, WORD))
    for i, (address, step) in enumerate(((b.bitcast(room, BYTES), 0), (ir.Constant(BYTES, None), 1))):
        b.store(address, cgutils.gep_inbounds(b, arrays, i))
        b.store(WORD(step), cgutils.gep_inbounds(b, steps, i))
    b.store(threads, count)
    nothing = ir.Constant(BYTES, None)
    with b.if_else(b.icmp_signed("==", threads, WORD(1))) as (one, more):
        with one:
            b.call(body, [arrays, count, steps, nothing])
        with more:
            kind = ir.FunctionType(ir.VoidType(), [BYTES] * 5 + [WORD] * 3)
            pool = cgutils.get_or_insert_function(b.module, kind, "numba_parallel_for")
            addresses = [b.bitcast(value, BYTES) for value in (body, arrays, count, steps)]
            b.call(pool, [*addresses, nothing, WORD(0), WORD(2), threads])


def handing_out(alone):
    @intrinsic
    def in_pool(typingctx, task, tasks, arguments):
        """task(number, *arguments) for number = 0 ... tasks - 1, in the pool; up to `alone` tasks in this thread."""
        signature = task.get_call_type(typingctx, (types.intp, *arguments.types), {})

        def emit(context, b, outer, given):
            _, tasks, values = given
            compiled = task.dispatcher.get_compile_result(signature)
            context.add_linking_libs([compiled.library])
            known = b.call(cgutils.get_or_insert_function(b.module, ir.FunctionType(WORD, []), "get_num_threads"), [])
            threads = b.select(b.icmp_signed("<=", tasks, WORD(alone)), WORD(1), known)
            counters = b.alloca(WORD, b.mul(threads, WORD(LINE)))
            held = [tasks, threads, counters, values]
            room = cgutils.alloca_once(b, ir.LiteralStructType([value.type for value in held]))
            for i, value in enumerate(held):
                b.store(value, cgutils.gep_inbounds(b, room, 0, i))

            def set_counter(part):
                b.store(start_of(b, part, threads, tasks), b.gep(counters, [b.mul(part, WORD(LINE))]))
            count_up(b, b.function, WORD(0), threads, set_counter)

            def work(b, number, values):
                each = [b.extract_value(values, i) for i in range(len(arguments))]
                context.call_internal_no_propagate(b, compiled.fndesc, signature, [number, *each])
            body = thread_body(b.module, b.module.get_unique_name(f"{b.function.name}.tasks"), room.type, work)
            run_body(b, body, room, threads, cgutils.alloca_once(b, WORD))
            return context.get_dummy_value()
        return types.void(task, types.intp, arguments), emit
    return in_pool


in_pool, many_in_pool = handing_out(1), handing_out(ALONE)                     # tasks of tens of microseconds; of a few
