"""The kept figures are those of the networks, and the page that lists them is written from them."""

from pathlib import Path

import pytest

from cvbatch.models import figures

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
AGAIN = "python -m cvbatch.models.figures writes them again"


def test_no_networks_are_a_page_with_an_empty_table():
    lines = figures.as_markdown([]).splitlines()
    assert lines[-2:] == [
        "| name | task | input | classes | parameters | multiply-adds |",
        "| --- | --- | --- | ---: | ---: | ---: |",
    ]


def test_a_network_is_a_row():
    one = figures.Figure("net", "detection", 20, 30, 3, 2, 12_345, 6_789_000)
    last = figures.as_markdown([one]).splitlines()[-1]
    assert last == "| `net` | detection | 20×30×3 | 2 | 12,345 | 6,789,000 |"


def test_the_page_is_written_from_the_kept_figures():
    assert PAGE.read_text(encoding="utf-8") == figures.as_markdown(figures.read_figures()), AGAIN


@pytest.mark.keras
def test_the_kept_figures_are_of_the_zoo_as_it_is():
    from cvbatch.models.zoo import ZOO

    kept = figures.read_figures()
    assert [figure.name for figure in kept] == list(ZOO), AGAIN
    few = ("mini_xception", "encoder_decoder", "yolo", "MobileNetV2", "VGG16")
    said = [figure for figure in kept if figure.name in few]
    assert sorted(figures.compute_figures(few), key=lambda one: list(ZOO).index(one.name)) == said


@pytest.mark.keras
def test_a_layer_that_does_not_tell_its_multiply_adds_is_named(monkeypatch):
    import keras

    from cvbatch.errors import ModelError
    from cvbatch.models import zoo

    def silent(num_classes, image_size):
        image = keras.Input((*image_size, 3))
        x = keras.layers.Reshape((-1, 3))(image)
        return keras.Model(image, keras.layers.LSTM(num_classes, name="memory")(x))

    monkeypatch.setitem(zoo.ZOO, "silent", zoo.ZooEntry(silent, "classification", 2, (8, 8)))
    with pytest.raises(ModelError, match="multiply-adds of memory"):
        list(figures.compute_figures(["silent"]))
