"""DeepDream compared with a plain gradient ascent; independence of images."""

import cv2
import numpy as np
import pytest

from tests.support import networks

pytestmark = pytest.mark.keras
SIZE = (32, 32)


def deep_dream(model, **fields):
    from cvbatch.config.explain import DreamConfig
    from cvbatch.explain.deepdream import DeepDream

    defaults = {"layers": {"last": 1.0}, "octaves": 1, "jitter": 0, "steps": 4}
    return DeepDream(model, lambda pixels: pixels, SIZE, DreamConfig(**defaults | fields))


def ascend_by_tape(model, weights, image, steps, step):
    """Return the image after gradient ascent with a GradientTape, in 0..255."""
    import keras
    import tensorflow as tf

    outputs = [model.get_layer(name).output for name in weights]
    extractor = keras.Model(model.inputs, outputs)
    canvas = tf.constant(image[None] / np.float32(255))
    for _ in range(steps):
        with tf.GradientTape() as tape:
            tape.watch(canvas)
            maps = tf.nest.flatten(extractor(canvas * 255, training=False))
            loss = sum(
                weight * tf.reduce_mean(tf.square(layer_map[:, 2:-2, 2:-2]))
                for weight, layer_map in zip(weights.values(), maps, strict=True)
            )
        canvas += step * tf.math.l2_normalize(tape.gradient(loss, canvas))
    return np.clip(canvas.numpy()[0], 0, 1) * 255


def test_one_octave_equals_ascent_by_tape():
    model = networks.plain_classifier(size=SIZE)
    image = networks.random_images(1, SIZE)[0]
    first = model.layers[1].name
    weights = {"last": 1.0, first: 0.5}
    dream = deep_dream(model, layers=weights, step=2.0)(image)
    np.testing.assert_allclose(dream, ascend_by_tape(model, weights, image, 4, 2.0), atol=0.6)
    assert np.abs(dream.astype(int) - image).max() > 5


def test_octaves_and_jitter_equal_ascent_by_tape():
    import keras
    import tensorflow as tf
    from keras import layers

    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((None, None, 3)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(8, 3, activation="tanh", padding="same", name="last"),
        ]
    )
    image = networks.random_images(1, SIZE)[0]
    dream = deep_dream(model, octaves=2, octave_scale=2.0, jitter=3, step=1.0, seed=9)(image)

    def shrink(pixels):
        return cv2.resize(pixels, (16, 16), interpolation=cv2.INTER_AREA)

    def enlarge(pixels):
        return cv2.resize(pixels, (32, 32), interpolation=cv2.INTER_LINEAR)

    def ascend(canvas, rng):
        for _ in range(4):
            dy, dx = rng.integers(-3, 4, 2)
            shifted = np.roll(np.roll(canvas, dy, 0), dx, 1)
            tensor = tf.constant(shifted[None])
            with tf.GradientTape() as tape:
                tape.watch(tensor)
                loss = tf.reduce_mean(tf.square(model(tensor * 255)[:, 2:-2, 2:-2]))
            gradient = tape.gradient(loss, tensor).numpy()[0]
            shifted = shifted + gradient / np.linalg.norm(gradient)
            canvas = np.roll(np.roll(shifted, -dy, 0), -dx, 1)
        return canvas

    rng = np.random.default_rng(9)
    original = image / np.float32(255)
    canvas = ascend(shrink(original), rng)
    lost_detail = original - enlarge(shrink(original))
    canvas = ascend(enlarge(canvas) + lost_detail, rng)
    np.testing.assert_allclose(dream, np.clip(canvas, 0, 1) * 255, atol=0.6)


def test_dream_of_a_nested_layer_depends_on_seed_and_image_only():
    model = networks.nested_classifier(size=SIZE)
    images = networks.random_images(2, SIZE)
    dream = deep_dream(model, layers={"act": 1.0}, octaves=3, jitter=4, seed=7)
    first = dream(images[0])
    assert first.shape == (*SIZE, 3)
    dream(images[1])
    assert np.array_equal(dream(images[0]), first)
    other_seed = deep_dream(model, layers={"act": 1.0}, octaves=3, jitter=4, seed=8)(images[0])
    assert not np.array_equal(other_seed, first)


def test_last_octave_has_the_size_of_the_image():
    from cvbatch.explain.deepdream import octave_sizes

    assert octave_sizes((100, 50), 1, 1.4) == [(100, 50)]
    assert octave_sizes((100, 50), 3, 2.0) == [(25, 12), (50, 25), (100, 50)]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layers": {"lost": 1.0}}, "'lost' is no layer of model .*; nearest are last"),
        ({"layers": {"dense": 1.0}}, "layer 'dense.*' has no output"),
        ({"octaves": 8, "octave_scale": 3.0}, "dream.octaves|cannot take images of"),
    ],
)
def test_invalid_layers_and_octaves_are_refused(fields, message):
    from cvbatch.core.errors import ModelError

    model = networks.plain_classifier(size=SIZE)
    dense = next(layer.name for layer in model.layers if layer.name.startswith("dense"))
    if "dense" in fields.get("layers", {}):
        fields = {"layers": {dense: 1.0}}
    with pytest.raises(ModelError, match=message):
        deep_dream(model, **fields)
