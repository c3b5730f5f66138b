"""The kept figures are those of the networks, and the page that lists them is written from them."""

from pathlib import Path

import pytest

from cvbatch.models import zoo_table

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
AGAIN = "python -m cvbatch.models.zoo_table writes them again"


def test_no_networks_are_a_page_with_an_empty_table():
    lines = zoo_table.as_markdown([]).splitlines()
    assert lines[-2:] == [
        "| name | task | input | classes | parameters | multiply-adds |",
        "| --- | --- | --- | ---: | ---: | ---: |",
    ]


def test_a_network_is_a_row():
    one = zoo_table.NetworkSummary("net", "detection", 20, 30, 3, 2, 12_345, 6_789_000)
    last = zoo_table.as_markdown([one]).splitlines()[-1]
    assert last == "| `net` | detection | 20×30×3 | 2 | 12,345 | 6,789,000 |"


def test_the_page_is_written_from_the_kept_figures():
    assert PAGE.read_text(encoding="utf-8") == zoo_table.as_markdown(zoo_table.read_summaries()), (
        AGAIN
    )


@pytest.mark.keras
def test_every_network_of_the_zoo_has_figures():
    from cvbatch.models.registry import ZOO

    assert [figure.name for figure in zoo_table.read_summaries()] == list(ZOO), AGAIN


@pytest.mark.keras
@pytest.mark.parametrize("kept", zoo_table.read_summaries(), ids=lambda figure: figure.name)
def test_the_kept_figures_are_those_of_the_network_as_it_is_built(kept):
    assert list(zoo_table.compute_summaries([kept.name])) == [kept], AGAIN


@pytest.mark.keras
def test_a_layer_that_does_not_tell_its_multiply_adds_is_named(monkeypatch):
    import keras

    from cvbatch.core.errors import ModelError
    from cvbatch.models import registry
    from cvbatch.models.zoo_entry import ZooEntry

    def silent(num_classes, image_size):
        image = keras.Input((*image_size, 3))
        x = keras.layers.Reshape((-1, 3))(image)
        return keras.Model(image, keras.layers.LSTM(num_classes, name="memory")(x))

    monkeypatch.setitem(registry.ZOO, "silent", ZooEntry(silent, "classification", 2, (8, 8)))
    with pytest.raises(ModelError, match="multiply-adds of memory"):
        list(zoo_table.compute_summaries(["silent"]))
