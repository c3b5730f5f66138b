"""Help texts: every argument is described, with its default."""

import argparse

import pytest

from cvbatch.cli import main
from cvbatch.cli.arguments import COMMANDS, build_parser


def subparsers(parser):
    """Yield a parser and the parsers of its subcommands, with their names."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, child in action.choices.items():
                yield name, child
                yield from subparsers(child)


def test_every_command_has_a_function():
    commands, *_ = [a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction)]
    assert set(commands.choices) == set(main._COMMANDS) > set(COMMANDS)


@pytest.mark.parametrize("parser", [child for _, child in subparsers(build_parser())])
def test_every_argument_has_a_help_text(parser):
    assert parser.description
    assert all(action.help or action.choices for action in parser._actions)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_with_a_value_states_its_default(command):
    for name, keywords in COMMANDS[command].arguments:
        if name.startswith("--") and keywords.get("action") != "store_true":
            assert any(word in keywords["help"] for word in ("default: ", "required", "repeated"))
