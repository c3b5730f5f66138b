"""Any classifier without its head is a backbone."""

import keras
import pytest
from keras import layers

from cvbatch.core.errors import ModelError
from cvbatch.models.applications import build_features
from cvbatch.models.backbones import build_backbone, feature_map_at_stride, total_stride
from cvbatch.models.classifiers import CLASSIFIERS

pytestmark = [
    pytest.mark.keras,
    # TensorFlow variables do not support the `copy` argument of NumPy 2, which Keras passes.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def no_weight_values():
    """Skip the allocation of weights: the tests compare shapes only."""
    with keras.StatelessScope(initialize_variables=False):
        yield


def strided(size, *strides):
    image = x = keras.Input((*size, 3))
    for i, stride in enumerate(strides):
        x = layers.Conv2D(i + 1, 3, strides=stride, padding="same", name=f"conv{i}")(x)
    return keras.Model(image, x, name="strided")


def test_an_application_is_built_without_its_top():
    backbone = build_backbone("MobileNetV2", (64, 96))

    assert backbone.output_shape == (None, 2, 3, 1280)
    assert backbone.count_params() == build_features("MobileNetV2", (64, 96)).count_params()


@pytest.mark.parametrize("name", ["mini_xception", "residual_convnet", "googlenet", "se_resnet34"])
def test_a_named_classifier_is_cut_before_its_head(name):
    backbone = build_backbone(name, (64, 96))
    classifier = CLASSIFIERS[name].build(2, (64, 96))
    head = classifier.get_layer("scores").count_params()

    assert len(backbone.output_shape) == 4
    assert backbone.input_shape == (None, 64, 96, 3)
    assert backbone.count_params() == classifier.count_params() - head


def test_the_last_feature_map_of_a_stride_is_returned():
    model = strided((32, 48), 2, 2, 1, 2)

    feature_maps = [feature_map_at_stride(model, stride) for stride in (2, 4, 8)]
    assert [tensor.shape for tensor in feature_maps] == [
        (None, 16, 24, 1),
        (None, 8, 12, 3),
        (None, 4, 6, 4),
    ]
    assert total_stride(model) == 8
    with pytest.raises(ModelError, match=r"'strided' has no feature map of stride 16 at 32×48"):
        feature_map_at_stride(model, 16)


@pytest.mark.parametrize(("size", "strides"), [((30, 32), (4,)), ((8, 16), (2, 2, 2, 2))])
def test_a_fractional_stride_is_refused(size, strides):
    with pytest.raises(ModelError, match=r"not a whole stride"):
        total_stride(strided(size, *strides))


@pytest.mark.parametrize(
    ("name", "size", "weights", "message"),
    [
        ("mobilenet-v2", (64, 64), None, r"unknown backbone 'mobilenet-v2'.*MobileNetV2"),
        ("###", (64, 64), None, r"'###'.*small_convnet, .*Xception"),
        ("resnet34", (64, 64), "imagenet", r"'resnet34' has no imagenet weights"),
        ("lenet5", (64, 64), None, r"takes grey images"),
        ("small_convnet", (8, 8), None, r"'small_convnet' cannot be built at 8×8"),
        ("VGG16", (8, 8), None, r"VGG16 cannot be built with image size 8×8"),
    ],
)
def test_unusable_backbones_are_refused_with_a_remedy(name, size, weights, message):
    with pytest.raises(ModelError, match=message) as error:
        build_backbone(name, size, weights)
    assert "\n" not in str(error.value)
