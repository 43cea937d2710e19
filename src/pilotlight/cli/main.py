"""The `pilotlight` command: which verbs there are, and what an error looks like on a terminal.

Each verb's module is imported when it is used, so that `--help` costs little. Cyclopts and Typer start equally fast
(0.14 s for `--help`); Cyclopts loads verbs lazily by name and shares groups of options as dataclasses.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cyclopts import App, Group, Parameter
from cyclopts.exceptions import CycloptsError

from pilotlight import __version__
from pilotlight.cli.steady import steady_streams

_SHOWN = Parameter(show_default=lambda value: None if value in {False, None, ()} else value)
"""A default is worth reading unless it is "no" or "unset"."""

_JOBS = Group("Run a file of rows", sort_key=1)
_POOL = Group("A pool that stays", sort_key=2)
_LOOK = Group("Look", sort_key=3)
_VERBS = [  # for the list; a verb's own help is its docstring
    (_JOBS, "run", "cli.run:run", "Run a file of prompts through a model."),
    (_JOBS, "run-batch", "cli.run_batch:run_batch", "Run an OpenAI batch file, as vLLM does."),
    (_POOL, "up", "cli.up:up", "Start a pool that stays when commands end."),
    (_POOL, "down", "cli.up:down", "End the pool."),
    (_POOL, "worker", "cli.worker:worker", "Work for a pool on another machine."),
    (_POOL, "jobs", "cli.jobs:jobs", "List the pool's jobs."),
    (_POOL, "attach", "cli.jobs:attach", "Follow a job of the pool."),
    (_POOL, "cancel", "cli.jobs:cancel", "End a job of the pool."),
    (_POOL, "workers", "cli.workers:workers", "List the pool's workers."),
    (_POOL, "contexts", "cli.contexts:contexts", "List what the pool holds, and where."),
    (_POOL, "pin", "cli.contexts:pin", "Keep a model loaded in the pool."),
    (_POOL, "evict", "cli.contexts:evict", "Let the pool drop a context that no job needs."),
    (_LOOK, "explain", "cli.explain:explain", "Tell what happened in a run, and why."),
    (_LOOK, "calibrate", "cli.calibrate:calibrate", "Make a scenario for the simulator of a real run."),
    (_LOOK, "simulate", "cli.simulate:simulate", "Try a cluster in virtual time before there is one."),
    (_LOOK, "demo", "factcheck.demo:demo", "Watch claims being verified: a worker is lost, and no row."),
]
_FACTCHECK = "Verify claims against their evidence."
_PROCESSES = {"manager": "pilotlight.manager.__main__"}
"""Verbs that are started by other processes of ours; they parse their own arguments and are not in the help."""

_OPTIONAL_VALUE = "--retry-errors"


def _app(called: list[str]) -> App:
    """The command line. Help that is given here would replace a docstring, so the verb that is `called` gets none."""
    app = App(
        name="pilotlight",
        default_parameter=_SHOWN,
        version=f"pilotlight {__version__}",
        version_flags=["--version"],
        help="High-throughput inference with small language models: models stay loaded, no row is lost.",
        help_format="markdown",
    )
    for group, name, home, text in _VERBS:
        app.command(f"pilotlight.{home}", name=name, group=group, help=None if called[:1] == [name] else text)
    factcheck = App(name="factcheck", help=_FACTCHECK, help_format="markdown", group=_JOBS)
    shown = None if called[:2] == ["factcheck", "verify"] else "Verify a file of claims."
    factcheck.command("pilotlight.factcheck.command:verify", name="verify", help=shown)
    app.command(factcheck)
    return app


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code: 0, 3 (some error rows), 2 (configuration), 1, or 128+signal."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in _PROCESSES:
        import importlib

        sys.argv = [f"pilotlight {arguments[0]}", *arguments[1:]]
        sys.exit(importlib.import_module(_PROCESSES[arguments[0]]).main())
    steady_streams()
    code = invoke(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)


def invoke(arguments: list[str]) -> int:
    """Run a verb; returns the exit code. What the user did wrong is one sentence on stderr."""
    try:
        code = _app(arguments)(
            _bare_options_closed(arguments), exit_on_error=False, print_error=False, result_action="return_value"
        )
    except CycloptsError as error:
        text = " ".join(str(error).split())
        verb = "".join(f" {name}" for name in error.command_chain or ())
        return _complain(f"{text} (pilotlight{verb} --help shows what there is)", 2)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        from pilotlight.core.errors import PilotlightError

        if not isinstance(error, PilotlightError):
            raise
        return _complain(str(error), error.exit_code)
    return code if isinstance(code, int) else 0


def _bare_options_closed(arguments: list[str]) -> list[str]:
    """`--retry-errors` alone means every kind, so it must not take the next argument for its value."""
    stop = arguments.index("--") if "--" in arguments else len(arguments)
    closed = [f"{argument}=" if argument == _OPTIONAL_VALUE else argument for argument in arguments[:stop]]
    return closed + arguments[stop:]


def _complain(text: str, code: int) -> int:
    print(f"pilotlight: {text}", file=sys.stderr)
    return code
