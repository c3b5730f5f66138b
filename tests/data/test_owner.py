"""A sink belongs to the command that has written there, and to no other."""

import pytest

from cvbatch.data.owner import STATES, refuse_others
from cvbatch.errors import SinkError


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
