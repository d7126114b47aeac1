"""The command line: ``python -m subinterp COMMAND``.

A command is a module with two functions: ``configure(parser)`` adds its
arguments to an `argparse.ArgumentParser`, and ``run(args)`` returns the exit
status. It is imported only when its command, or its help, is asked for.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

# Name of the command: the module that has it, what it does.
COMMANDS = {
    "check": ("subinterp.check", "try modules in workers, and say which of them load, and how"),
    "info": ("subinterp._info", "show the runtime as a tree, and what is supported here"),
    "top": ("subinterp._top", "show interpreters, workers and tasks of a program while it runs"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments; by default, those of the process.

    Returns
    -------
    int
        The exit status.

    Raises
    ------
    SystemExit
        With status 2, if the arguments are wrong; with 0, if they asked for help.
    """
    if argv is None:
        argv = sys.argv[1:]
    parser = argparse.ArgumentParser(
        prog="python -m subinterp",
        description="Pools of interpreters that run ordinary Python in parallel.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name, (module, help_text) in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=help_text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if name in argv:
            import_module(module).configure(command)
    args = parser.parse_args(argv)
    if args.version:
        import subinterp

        print(f"subinterp {subinterp.__version__}, Python {sys.version.split()[0]}")
        return 0
    if args.command is None:
        parser.print_help(sys.stderr)
        return 2
    status: int = import_module(COMMANDS[args.command][0]).run(args)
    return status


if __name__ == "__main__":
    sys.exit(main())
