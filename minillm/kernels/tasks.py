"""How work is cut for numba's pool: into tasks whose number and bounds depend on the shape alone, never on the threads.

A kernel of this kind is two functions: a plain one that does task number `task`, and a thin one with parallel=True whose only loop
hands out tasks. What parallel=True compiles it also rewrites, so that no work stands there.
"""
BLOCK = 16384        # values a task: 64 KB of float32, a few microseconds, which is what starting the pool costs


def count(size: int, block: int = BLOCK) -> int:
    """Tasks that `size` values or rows make, the last one perhaps smaller."""
    return -(-size // block)


def run(one, pool, tasks: int, *arguments) -> None:
    """A single task runs here, several run in the pool."""
    if tasks <= 1:
        one(*arguments, 0)
    else:
        pool(*arguments, tasks)
