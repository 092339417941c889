"""What the documentation takes from the code when it is built: the help of every command."""

import click

from nextstep_jax.cli import cli

_MARK = "<!-- commands -->"


def on_page_markdown(markdown: str, **_) -> str:
    """Put the help texts where a page has the mark."""
    return markdown.replace(_MARK, "\n".join(_help(cli, "nextstep-jax", None))) if _MARK in markdown else markdown


def _help(command: click.Command, name: str, parent: click.Context | None) -> list[str]:
    context = click.Context(
        command, info_name=name.rpartition(" ")[2], parent=parent, max_content_width=110, terminal_width=110
    )
    if isinstance(command, click.Group) and parent is None:
        lines = []
    else:
        lines = [f"## {name}", "", "```text", command.get_help(context), "```", ""]
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            lines += _help(command.get_command(context, child), f"{name} {child}", context)
    return lines
