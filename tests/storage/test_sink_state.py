"""A sink belongs to the command that has written there, and to no other."""

import pytest

from cvbatch.core.errors import SinkError
from cvbatch.storage.sink_state import STATES, held, put_state, refuse_others


def test_an_empty_or_absent_folder_is_anybodys(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        for own in STATES:
            refuse_others(str(folder), own)


@pytest.mark.parametrize("own", STATES)
@pytest.mark.parametrize("other", STATES)
def test_only_its_own_command_may_go_on_in_a_sink(tmp_path, own, other):
    (tmp_path / "_cvbatch").mkdir()
    (tmp_path / "_cvbatch" / f"{other}.json").write_text("{}")
    if own == other:
        refuse_others(str(tmp_path), own)
        return
    with pytest.raises(SinkError, match=f"`cvbatch {STATES[other]}` has its result there"):
        refuse_others(str(tmp_path), own)


def ask(folder, fingerprint="a", *, overwrite=False):
    return held(str(folder), "explain", fingerprint, overwrite=overwrite, differs="one: it differs")


def test_of_nothing_nothing_is_held(tmp_path):
    assert ask(tmp_path) is None and ask(tmp_path / "absent") is None


def test_what_was_put_is_held_for_its_own_fingerprint_and_no_other(tmp_path):
    said = {"fingerprint": "a", "done": [1, 2]}
    put_state(str(tmp_path), "explain", said)
    assert ask(tmp_path) == said
    assert ask(tmp_path, overwrite=True) is None
    with pytest.raises(SinkError, match="holds another one: it differs; name another sink, or"):
        ask(tmp_path, "b")
    assert ask(tmp_path, "b", overwrite=True) is None
    with pytest.raises(SinkError, match="`cvbatch explain` has its result there"):
        held(str(tmp_path), "evaluation", "a", overwrite=True, differs="")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}"])
def test_a_damaged_state_is_told_and_may_be_replaced(tmp_path, text):
    (tmp_path / "_cvbatch").mkdir()
    (tmp_path / "_cvbatch" / "explain.json").write_text(text)
    with pytest.raises(SinkError, match=r"_cvbatch/explain.json is damaged"):
        ask(tmp_path)
    assert ask(tmp_path, overwrite=True) is None


def test_parquet_files_of_somebody_else_are_not_written_among(tmp_path):
    (tmp_path / "a.parquet").touch()
    with pytest.raises(SinkError, match=r"'a.parquet'; name an empty folder"):
        ask(tmp_path)
