"""`volseg synth cohort` is a command, `volseg synth ./cohort` grows lesions in a folder of that name."""

from __future__ import annotations

import pytest

from volseg.cli import main
from volseg.cli.synth_sites import joined


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        (["synth", "cohort", "--site", "B"], ["synth cohort", "--site", "B"]),
        (["synth", "gallery", "phantom"], ["synth gallery", "phantom"]),
        (["synth", "./cohort", "-o", "x"], ["synth", "./cohort", "-o", "x"]),
        (["synth", "phantom", "gallery"], ["synth", "phantom", "gallery"]),
        (["predict", "cohort"], ["predict", "cohort"]),
        ([], []),
    ],
)
def test_only_the_second_word_makes_the_command(typed, read):
    assert joined(typed) == read


@pytest.mark.parametrize("word", ["cohort", "gallery"])
def test_each_word_has_a_help_of_its_own(word, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["synth", word, "--help"])
    assert stop.value.code == 0 and f"volseg synth {word}" in capsys.readouterr().out
