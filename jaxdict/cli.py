"""The `jaxdict` command. Without the packages that it needs it says which to install, and does nothing else."""

import os
import sys

try:
    import jinja2  # noqa: F401  (pages are made with it, results saved with the next: after compute it is too late to miss them)
    import safetensors  # noqa: F401

    from jaxdict.commands import app

    MISSING = ""
except ModuleNotFoundError as error:
    MISSING = (error.name or "").partition(".")[0]
    if MISSING not in ("typer", "rich", "safetensors", "matplotlib", "jinja2"):
        raise
    app = None
except KeyboardInterrupt:
    sys.exit(130)


def main() -> None:
    """Run the command line. Exit codes: 0 done; 1 a check that was asked for failed; 2 bad input; 130 interrupted."""
    if app is None:
        print(f'jaxdict: error: the command line needs {MISSING}: pip install "jaxdict[cli]"', file=sys.stderr)
        sys.exit(2)
    try:
        app()
    except SystemExit as end:
        if end.code == 130:
            # A program may still be running on jax's threads; taking Python down beneath it is a crash.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(130)
        raise


if __name__ == "__main__":
    main()
