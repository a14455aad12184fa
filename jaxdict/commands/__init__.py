"""The command line's verbs, one job each."""

import sys

import typer
from typer.core import TyperGroup

from jaxdict.commands.arbitrating import arbitrate_command
from jaxdict.commands.console import BAD_INPUT, INTERRUPTED, say
from jaxdict.commands.demonstration import demo_command
from jaxdict.commands.growing import grow_command
from jaxdict.commands.inspection import info_command
from jaxdict.commands.polishing import polish_command
from jaxdict.commands.review import audit_command
from jaxdict.commands.solving import certify_command, fit_command
from jaxdict.commands.sweeping import sweep_command
from jaxdict.commands.training import train_command


class Verbs(TyperGroup):
    """A group whose misuse (an unknown option, a missing one) is one line on stderr and exit code 2."""

    def main(self, args=None, prog_name=None, complete_var=None, standalone_mode=True, **extra):
        args = sys.argv[1:] if args is None else list(args)
        try:
            code = super().main(args or ["--help"], prog_name, complete_var, standalone_mode=False, **extra)
        except Exception as error:
            if not hasattr(error, "format_message"):  # not typer's own kind of error
                if type(error).__name__ != "Abort":
                    raise
                say("jaxdict: interrupted")
                sys.exit(INTERRUPTED)
            say(f"jaxdict: error: {' '.join(error.format_message().split())}")  # type: ignore[attr-defined]
            sys.exit(BAD_INPUT)
        sys.exit(code if isinstance(code, int) else 0)


app = typer.Typer(
    name="jaxdict",
    cls=Verbs,
    help="Non-negative L1 dictionary learning with certificates of local optimality.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog="Exit codes: 0 done; 1 a check that was asked for failed; 2 bad input; 130 interrupted.",
)
app.command("demo")(demo_command)
app.command("fit")(fit_command)
app.command("certify")(certify_command)
app.command("grow")(grow_command)
app.command("sweep")(sweep_command)
app.command("train")(train_command)
app.command("audit")(audit_command)
app.command("arbitrate")(arbitrate_command)
app.command("polish")(polish_command)
app.command("info")(info_command)
