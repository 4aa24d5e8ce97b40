"""The command line, made by click from the settings of :data:`dsconvert.config.jobs.JOBS`.

No option is written here: a field of a settings class becomes one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource, augment_usage_errors
from click.shell_completion import CompletionItem, shell_complete

from dsconvert import __version__
from dsconvert.cli import codes, streams
from dsconvert.config.base import Job
from dsconvert.config.jobs import JOBS
from dsconvert.config.setting import Item, assemble, items, sections
from dsconvert.errors import UsageError

_NAME = "dsconvert"
_DEFAULT = "convert"
_COMPLETION = "_DSCONVERT_COMPLETE"
"""The variable by which a shell asks for completions; click's convention."""
_EXAMPLES = """\
  dsconvert generator.pkl --out fast.pkl     short for 'dsconvert convert'
  dsconvert inspect generator.pkl            lists its contents; runs nothing
  dsconvert report generator.pkl [fast.pkl]  parameters and MACs, layer by layer
  dsconvert generate fast.pkl --seeds 0-15 --out grid.png
  dsconvert compare generator.pkl fast.pkl --seeds 0-7 --out side_by_side.png
  dsconvert train --data DIR|ZIP --cfg fastgan --kimg 1000 --out runs/
  dsconvert finetune fast.pkl --data DIR|ZIP --kimg 100 --out runs/
  dsconvert bench generator.pkl [fast.pkl]   time and memory on this machine
  dsconvert distill generator.pkl fast.pkl --minutes 30 --out fast2.pkl
  dsconvert export fast.pkl --format onnx --out fast.onnx
  dsconvert eval fast.pkl --data images.zip --against generator.pkl
"""


@dataclass(frozen=True, kw_only=True)
class Call:
    """One command as it was typed."""

    command: str
    options: Any
    """The settings of the command's job."""
    typed: Mapping[str, Any]
    """The values of the options that were typed, by the option's name."""
    words: tuple[str, ...] = ()
    """The command line without the program's name."""


class _Value(click.ParamType):  # pyright: ignore[reportMissingTypeArgument]
    """The values of one setting, with its own reader and completion."""

    def __init__(self, item: Item) -> None:
        self.item, self.name = item, item.name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self.item.read(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        if self.item.about.completes is not None:
            return [CompletionItem(incomplete, type=self.item.about.completes)]
        found = [str(c) for c in self.item.choices]
        return [CompletionItem(c) for c in found if c.startswith(incomplete)]


def _parameter(item: Item) -> click.Parameter:
    """The click parameter of a setting. Its default stays in the settings class."""
    kind, option = _Value(item), str(item.option)
    if item.about.positional:
        return click.Argument(
            [option],
            type=kind,
            required=item.required,
            nargs=-1 if item.about.repeat else 1,
            metavar=item.about.metavar,
        )
    if item.is_flag:
        return click.Option([option, _variable(option)], is_flag=True)
    return click.Option(
        [option, _variable(option)],
        type=kind,
        metavar=_metavar(item),
        multiple=item.about.repeat,
        required=item.required,
    )


def _variable(option: str) -> str:
    return option.lstrip("-").replace("-", "_")


def _metavar(item: Item) -> str:
    if item.choices and item.about.metavar is None:
        return "[" + "|".join(str(c) for c in item.choices) + "]"
    usual = {int: "N", float: "X"}
    return item.about.metavar or usual.get(item.type, "TEXT")


def _described(item: Item) -> str:
    """The line of a setting in the help."""
    notes = [item.default_text and f"default: {item.default_text}"]
    notes += ["repeatable"] if item.about.repeat and not item.about.positional else []
    shown = "; ".join(n for n in notes if n)
    return f"{item.about.help} [{shown}]" if shown else item.about.help


class _Command(click.Command):
    """A job's command: its callback makes a :class:`Call` of the typed options."""

    def __init__(self, name: str, job: type[Job]) -> None:
        self.job = job
        found = [item for _, group in sections(job) for item in group]
        first, _, rest = (job.__doc__ or "").partition("\n")
        super().__init__(
            name,
            callback=self._call,
            params=[_parameter(item) for item in found],
            help=job.__doc__ if rest.strip() else first,
            short_help=first.rstrip("."),
            epilog=codes.HELP,
        )

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Let an error name this command: click does not where an option lacks its value."""
        with augment_usage_errors(ctx):
            return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a section for each group of settings."""
        for group, found in sections(self.job):
            rows = [(self._usage(item), _described(item)) for item in found]
            if group is None:
                here = [r for i, r in zip(found, rows, strict=True) if i.about.positional]
                rows = [r for i, r in zip(found, rows, strict=True) if not i.about.positional]
                rows.append(("-h, --help", "show this message and exit"))
                if here:
                    with formatter.section("Arguments"):
                        formatter.write_dl(here)
            with formatter.section("Options" if group is None else group.title):
                if group is not None and group.note:
                    formatter.write_text(group.note)
                    formatter.write_paragraph()
                formatter.write_dl(rows)

    @staticmethod
    def _usage(item: Item) -> str:
        if item.about.positional:
            return item.about.metavar or str(item.option).upper()
        return str(item.option) if item.is_flag else f"{item.option} {_metavar(item)}"

    def _call(self, **values: Any) -> Call:
        context = click.get_current_context()
        typed: dict[str, Any] = {}
        made: dict[tuple[str, ...], Any] = {}
        for item in items(self.job):
            option = item.option
            if option is None:
                continue
            name = option if item.about.positional else _variable(option)
            if context.get_parameter_source(name) is not ParameterSource.COMMANDLINE:
                continue
            value = item.flag if item.is_flag else values[name]
            typed[option] = made[item.path] = value
        self.job.check_typed(typed)
        options = assemble(self.job, made)
        return Call(command=str(self.name), options=options, typed=typed)


class _Commands(click.Group):
    """All commands. A first word that names no command is a file to convert, or a typo."""

    def __init__(self) -> None:
        super().__init__(
            _NAME,
            help="Make an existing GAN generator small and fast without losing its pictures.",
            context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
            params=[
                click.Option(
                    ["--version"],
                    is_flag=True,
                    is_eager=True,
                    expose_value=False,
                    callback=_version,
                    help="show the version and exit",
                ),
                click.Option(
                    ["--show-completion"],
                    type=click.Choice(["bash", "zsh", "fish"]),
                    is_eager=True,
                    expose_value=False,
                    callback=_completion,
                    help="print the script of shell completion, and exit",
                ),
            ],
        )

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(JOBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return _Command(cmd_name, JOBS[cmd_name]) if cmd_name in JOBS else None

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the default command before a file, and before options that are not ours."""
        own = {name for p in self.get_params(ctx) for name in p.opts}
        if args and args[0] not in JOBS and args[0].partition("=")[0] not in own:
            word = args[0]
            if _is_typo(word) and not ctx.resilient_parsing:
                raise click.exceptions.NoSuchCommand(word, possibilities=JOBS, ctx=ctx)
            args = [_DEFAULT, *args]
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete files, too: a file is a command line of its own."""
        found = super().shell_complete(ctx, incomplete)
        return found or [CompletionItem(incomplete, type="file")]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, (job.__doc__ or "").partition("\n")[0]) for name, job in JOBS.items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_help_text(ctx, formatter)
        formatter.write_paragraph()
        formatter.write(_EXAMPLES)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Exit codes"):
            formatter.write_dl([(f"{c}:", text) for c, text in codes.MEANINGS.items()])


def _is_typo(word: str) -> bool:
    """Whether a first word looks like a command and not like a file."""
    if word.startswith("-") or Path(word).suffix or os.sep in word or os.path.lexists(word):
        return False
    return bool(get_close_matches(word, JOBS))


def _version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        click.echo(f"{_NAME} {__version__}")
        ctx.exit()


def _completion(ctx: click.Context, _: click.Parameter, value: str | None) -> None:
    if value and not ctx.resilient_parsing:
        shell_complete(ctx.command, {}, _NAME, _COMPLETION, f"{value}_source")
        ctx.exit()


def parse(words: Sequence[str]) -> Call | int:
    """Parse a command line; the first word may be a file (then the command is ``convert``).

    Returns:
        The call; or an exit code, where the command line asked for help and got it.

    Raises:
        UsageError: an unknown command or option, a bad value, or options that contradict each
            other.
        ReaderGone: nobody reads the help.
        OutputError: standard output refuses the help.
    """
    commands = _Commands()
    if (asked := os.environ.get(_COMPLETION)) is not None:
        with streams.writing():
            return shell_complete(commands, {}, _NAME, _COMPLETION, asked)
    try:
        with streams.writing(), commands.make_context(_NAME, list(words)) as context:
            call: Call = commands.invoke(context)
    except click.exceptions.NoArgsIsHelpError as error:
        with streams.writing():
            click.echo(error.format_message())
        return codes.USAGE
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.UsageError as error:
        where = _NAME if error.ctx is None else error.ctx.command_path
        raise UsageError(f"{error.format_message()} (see {where} --help)") from None
    return Call(command=call.command, options=call.options, typed=call.typed, words=tuple(words))
