"""How rows and values are shared out among threads: into tasks, by the array's shape alone.

A task is computed by one thread from its first row to its last, and no sum crosses the border of two tasks but in their order, so
results are the same bits on any number of threads. A kernel is a plain function of one task; beside it stands a loop over tasks,
which numba runs in its own pool. The count of threads is numba's setting.
"""
from collections.abc import Callable

from llvmlite import ir
from numba import njit, prange, types
from numba.extending import intrinsic

from minillm.kernels.scalars import JIT

POOL = JIT | {"parallel": True}    # for functions that are nothing but a prange over tasks: numba rewrites what stands inside
VALUES = 4096                      # in a task at least: 1 to 5 us of work
TASKS = 64                         # at most: four for each of 16 threads, and sums over tasks stay short


def shares(n: int, least: int) -> tuple[int, int]:
    """How many of n items go into a task, at least `least`, and how many tasks that makes."""
    each = max(1, least, -(-n // TASKS))
    return each, -(-n // each)


# Tasks as machine code: numba compiles a loop over tasks three times, and with it whatever the loop calls. Behind an address it is
# compiled once, and one loop serves all kernels whose task is a function of two numbers, its own and an address of what it needs.

def code_of(task: Callable) -> int:
    """The address of a compiled function of two whole numbers, which is compiled where it was not."""
    task.compile((types.intp, types.intp))
    compiled = task.overloads[types.intp, types.intp]
    return compiled.library.get_pointer_to_function(compiled.fndesc.llvm_cfunc_wrapper_name)


@intrinsic
def call_task(typingctx, code, number, job):
    """Calls the function at this address."""
    def emit(context, builder, signature, args):
        code, *numbers = args
        kind = ir.FunctionType(ir.VoidType(), [number.type for number in numbers])
        builder.call(builder.inttoptr(code, kind.as_pointer()), numbers)
        return context.get_dummy_value()
    return types.void(types.intp, types.intp, types.intp), emit


@intrinsic
def next_number(typingctx, counter):
    """The whole number at an address, which is one more afterwards; no two threads get the same."""
    def emit(context, builder, signature, args):
        place = builder.inttoptr(args[0], args[0].type.as_pointer())
        return builder.atomic_rmw("add", place, args[0].type(1), "monotonic")
    return types.intp(types.intp), emit


@njit(**JIT)
def run_tasks(tasks, code, job, counter):
    """Tasks that nobody has taken yet, until there are none."""
    task = next_number(counter)
    while task < tasks:
        call_task(code, task, job)
        task = next_number(counter)


@njit(**POOL)
def share_tasks(tasks, code, job, counter):
    for _ in prange(tasks):                      # the pool gives each thread its part of them, however slow it is
        run_tasks(tasks, code, job, counter)


@njit(**JIT)
def run_code(tasks, code, job, counter, shared):
    """Tasks 0 ... tasks - 1 of this code, by all threads where they are to share them; the counter, an address, holds 0."""
    if shared:
        share_tasks(tasks, code, job, counter)
    else:
        run_tasks(tasks, code, job, counter)
