"""Any classifier serves as a backbone, cut where its head begins."""

import keras
import pytest
from keras import layers

from cvbatch.core.errors import ModelError
from cvbatch.models.applications import build_features
from cvbatch.models.backbones import build_backbone, feature_map_at_stride, total_stride
from cvbatch.models.classifiers import CLASSIFIERS

pytestmark = [
    pytest.mark.keras,
    # TensorFlow's variables do not know NumPy 2's `copy`, and Keras passes it.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def no_values():
    """Shapes are all that is asked here."""
    with keras.StatelessScope(initialize_variables=False):
        yield


def strided(size, *strides):
    image = x = keras.Input((*size, 3))
    for i, stride in enumerate(strides):
        x = layers.Conv2D(i + 1, 3, strides=stride, padding="same", name=f"conv{i}")(x)
    return keras.Model(image, x, name="strided")


def test_an_application_is_had_without_its_top():
    backbone = build_backbone("MobileNetV2", (64, 96))

    assert backbone.output_shape == (None, 2, 3, 1280)
    assert backbone.count_params() == build_features("MobileNetV2", (64, 96)).count_params()


@pytest.mark.parametrize("name", ["mini_xception", "residual_convnet", "googlenet", "se_resnet34"])
def test_a_classifier_of_the_zoo_is_cut_before_its_head(name):
    backbone, whole = build_backbone(name, (64, 96)), CLASSIFIERS[name].build(2, (64, 96))
    head = whole.get_layer("scores").count_params()

    assert len(backbone.output_shape) == 4
    assert backbone.input_shape == (None, 64, 96, 3)
    assert backbone.count_params() == whole.count_params() - head


def test_the_last_map_of_a_stride_is_found():
    model = strided((32, 48), 2, 2, 1, 2)

    found = [feature_map_at_stride(model, stride) for stride in (2, 4, 8)]
    assert [tensor.shape for tensor in found] == [
        (None, 16, 24, 1),
        (None, 8, 12, 3),
        (None, 4, 6, 4),
    ]
    assert total_stride(model) == 8
    with pytest.raises(ModelError, match=r"'strided' has no feature map of stride 16 at 32×48"):
        feature_map_at_stride(model, 16)


@pytest.mark.parametrize(("size", "strides"), [((30, 32), (4,)), ((8, 16), (2, 2, 2, 2))])
def test_a_stride_that_is_no_whole_number_is_refused(size, strides):
    with pytest.raises(ModelError, match=r"no whole stride"):
        total_stride(strided(size, *strides))


@pytest.mark.parametrize(
    ("name", "size", "weights", "message"),
    [
        ("mobilenet-v2", (64, 64), None, r"no backbone is called .* nearest are .*MobileNetV2"),
        ("###", (64, 64), None, r"there are small_convnet, .*Xception"),
        ("resnet34", (64, 64), "imagenet", r"'resnet34' has no imagenet weights"),
        ("lenet5", (64, 64), None, r"takes grey images"),
        ("small_convnet", (8, 8), None, r"'small_convnet' cannot be built at 8×8"),
        ("VGG16", (8, 8), None, r"VGG16 cannot be built with image size 8×8"),
    ],
)
def test_what_cannot_be_is_refused_with_a_remedy(name, size, weights, message):
    with pytest.raises(ModelError, match=message) as error:
        build_backbone(name, size, weights)
    assert "\n" not in str(error.value)
