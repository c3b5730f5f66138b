"""The stored summaries of networks are up to date, and docs/networks.md is generated from them."""

from pathlib import Path

import pytest

from cvbatch.models import zoo_table

PAGE = Path(__file__).parents[2] / "docs" / "networks.md"
REMEDY = "run python -m cvbatch.models.zoo_table"


def test_no_networks_give_an_empty_table():
    lines = zoo_table.as_markdown([]).splitlines()
    assert lines[-2:] == [
        "| name | task | input | classes | parameters | multiply-adds |",
        "| --- | --- | --- | ---: | ---: | ---: |",
    ]


def test_each_network_is_one_row():
    summary = zoo_table.NetworkSummary("net", "detection", 20, 30, 3, 2, 12_345, 6_789_000, "")
    last = zoo_table.as_markdown([summary]).splitlines()[-1]
    assert last == "| `net` | detection | 20×30×3 | 2 | 12,345 | 6,789,000 |"


def test_the_page_is_generated_from_the_stored_summaries():
    assert PAGE.read_text(encoding="utf-8") == zoo_table.as_markdown(zoo_table.read_summaries()), (
        REMEDY
    )


@pytest.mark.keras
def test_every_network_has_a_summary():
    from cvbatch.models.registry import ZOO

    assert [summary.name for summary in zoo_table.read_summaries()] == list(ZOO), REMEDY


@pytest.mark.keras
@pytest.mark.parametrize("stored", zoo_table.read_summaries(), ids=lambda summary: summary.name)
def test_stored_summaries_match_the_networks(stored):
    assert list(zoo_table.compute_summaries([stored.name])) == [stored], REMEDY


@pytest.mark.keras
def test_a_layer_with_unknown_multiply_adds_is_named(monkeypatch):
    import keras

    from cvbatch.core.errors import ModelError
    from cvbatch.models import registry
    from cvbatch.models.zoo_entry import ZooEntry

    def recurrent(num_classes, image_size):
        image = keras.Input((*image_size, 3))
        x = keras.layers.Reshape((-1, 3))(image)
        return keras.Model(image, keras.layers.LSTM(num_classes, name="memory")(x))

    monkeypatch.setitem(registry.ZOO, "recurrent", ZooEntry(recurrent, "classification", 2, (8, 8)))
    with pytest.raises(ModelError, match="multiply-adds of memory"):
        list(zoo_table.compute_summaries(["recurrent"]))
