"""Grad-CAM on the tokens of transformers, compared with gradient tapes on models split by hand."""

import numpy as np
import pytest

from cvbatch.core.errors import ModelError
from tests.inference.test_engines import TOLERANCE, config, run
from tests.support import networks, transformers
from tests.support.transformers import GRID, SIZE, token_grad_cam

pytestmark = pytest.mark.keras


def split_functional(model, layer):
    """Return the split of a functional model at the output of a layer."""
    import keras

    before = keras.Model(model.inputs, model.get_layer(layer).output)
    block = layer.removesuffix("_norm1")
    residual = keras.Model(model.inputs, model.get_layer(f"{block}_add1").input[0])
    tail = keras.Model(model.get_layer(f"{block}_add1").output, model.output)
    (attention,) = (x for x in model.layers if x.name == f"{block}_attention")

    def split(image):
        shortcut = residual(image)
        return before(image), lambda tokens: tail(shortcut + attention(tokens, tokens))

    return split


def split_pooled(before, head):
    """Return the split of a model whose head reads the mean of all tokens."""
    import keras

    return lambda image: (before(image), lambda tokens: head(keras.ops.mean(tokens, axis=1)))


def check(model, layer, split, start, grid=GRID, engine="litert", **heatmap):
    images = networks.random_images(2, model.input_shape[1:3])
    results, graph = run(engine, model, config(heatmap={"top_k": 2, **heatmap}), images)
    assert graph.heatmap_layer.endswith(layer)
    for rank in range(2):
        expected = token_grad_cam(split, images, start, grid, rank)
        assert expected.any()
        np.testing.assert_allclose(results["heatmaps"][:, rank], expected, atol=TOLERANCE)


@pytest.mark.runs("vision transformer with class token, heatmaps", "`heatmap: {layer: auto}`")
@pytest.mark.parametrize("engine", ["litert", pytest.param("tensorflow", marks=pytest.mark.soak)])
def test_the_map_of_a_class_token_is_the_input_of_the_last_attention(engine):
    model = transformers.vision_transformer()
    split = split_functional(model, "block1_norm1")
    check(model, "block1_norm1", split, start=1, engine=engine)


@pytest.mark.soak
@pytest.mark.parametrize(
    "options",
    [{"num_extra": 5}, {"by_reshape": True}, {"num_extra": 2, "by_reshape": True}],
    ids=str,
)
def test_register_tokens_and_patches_by_reshape(options):
    model = transformers.vision_transformer(**options)
    start = options.get("num_extra", 1)
    check(model, "block1_norm1", split_functional(model, "block1_norm1"), start)


@pytest.mark.runs(
    "vision transformer with mean of the patches, heatmaps", "`heatmap: {layer: auto}`"
)
def test_the_map_of_pooled_patches_is_the_last_normalisation():
    import keras

    model = transformers.vision_transformer(
        num_extra=0, pooling="mean", attention=transformers.manual_attention
    )
    before = keras.Model(model.inputs, model.get_layer("norm").output)
    head = model.layers[-1]
    check(model, "norm", split_pooled(before, head), start=0)


@pytest.mark.runs(
    "vision transformer whose patches are not row-major, heatmaps",
    "no: set `layer:` to the patch embedding, or remove `heatmap`",
)
def test_patches_in_another_order_are_refused_and_the_patch_embedding_is_named():
    model = transformers.vision_transformer(order=list(range(GRID[0] * GRID[1]))[::-1])
    images = networks.random_images(1, SIZE)
    with pytest.raises(ModelError, match=r"'patches', an early layer.* 25 tokens.*layer: patches"):
        run("litert", model, config(heatmap={}), images)


def test_a_named_layer_whose_patches_do_not_change_the_scores_is_refused():
    model = transformers.vision_transformer()
    images = networks.random_images(1, SIZE)
    with pytest.raises(ModelError, match=r"heatmap layer 'norm' has no output .* or auto"):
        run("litert", model, config(heatmap={"layer": "norm"}), images)


def split_hub(model, block, head):
    """Return the split of a keras_hub ViT or DeiT at the first norm of its last block.

    Args:
        head: function of the tokens after the last block.
    """

    def split(image):
        backbone = model.backbone
        embed, encoder = backbone.layers[-2:]
        x = embed(image)
        for layer in encoder.encoder_layers[:-1]:
            x = layer(x)
            x = x[0] if isinstance(x, tuple) else x
        last = encoder.encoder_layers[-1]

        def rest(tokens):
            y = last.mha(tokens, tokens) + x
            mixed = last.mlp(last.layer_norm_2(y))
            y = last.output_layer(mixed, y) if hasattr(last, "output_layer") else mixed + y
            return head(encoder.layer_norm(y))

        return last.layer_norm_1(x), rest

    return split


@pytest.mark.soak
@pytest.mark.runs(
    "ViT, DeiT and Swin of keras_hub, heatmaps", "`heatmap: {layer: auto}`, extra `hub`"
)
@pytest.mark.parametrize("kind", ["ViT", "DeiT"])
def test_transformers_of_keras_hub(kind):
    keras_hub = pytest.importorskip("keras_hub")
    import keras

    keras.utils.set_random_seed(12)
    sizes = {"patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 16}
    hidden = {"ViT": "mlp_dim", "DeiT": "intermediate_dim"}[kind]
    side = SIZE if kind == "ViT" else (32, 32)
    backbone = getattr(keras_hub.models, f"{kind}Backbone")(
        image_shape=(*side, 3), **sizes, **{hidden: 32}
    )
    classifier = getattr(keras_hub.models, f"{kind}ImageClassifier")
    model = classifier(backbone=backbone, num_classes=5, pooling="token", activation="softmax")
    grid = (side[0] // 8, side[1] // 8)
    split = split_hub(model, -1, lambda tokens: model.layers[-1](tokens[:, 0]))
    check(model, "transformer_block_2/ln_1", split, {"ViT": 1, "DeiT": 2}[kind], grid)


@pytest.mark.soak
def test_a_windowed_transformer_of_keras_hub():
    keras_hub = pytest.importorskip("keras_hub")
    import keras

    keras.utils.set_random_seed(13)
    backbone = keras_hub.models.SwinTransformerBackbone(
        image_shape=(64, 64, 3), patch_size=4, embed_dim=8, depths=(2, 2), num_heads=(2, 2),
        window_size=4,
    )  # fmt: skip
    model = keras_hub.models.SwinTransformerImageClassifier(
        backbone=backbone, num_classes=5, activation="softmax"
    )
    head = model.layers[-1]
    check(model, "norm", split_pooled(backbone, head), start=0, grid=(8, 8))
