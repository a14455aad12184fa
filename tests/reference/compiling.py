"""What jax compiles while something runs, by its own monitoring."""

import contextlib

import jax

COMPILED = "/jax/core/compile/backend_compile_duration"
# Programs by which jax moves and converts single arrays, which are no one's own.
ON_THE_WAY = ("jit(stage)", "jit(convert_element_type)")


@contextlib.contextmanager
def compilations():
    """A list that grows by the name of each program that jax compiles."""
    names = []

    def listen(event, duration, **about):
        if event == COMPILED:
            names.append(about.get("fun_name", "?"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def own(names: list[str]) -> list[str]:
    """Those of them that are not merely `ON_THE_WAY`."""
    return [name for name in names if name not in ON_THE_WAY]
