"""A dream ascends where a plain loop ascends, and knows of no other image."""

import cv2
import numpy as np
import pytest

from tests.support import networks

pytestmark = pytest.mark.keras
SIZE = (32, 32)


def fed(pixels):
    return pixels


def dreamer(model, **said):
    from cvbatch.config.explain import DreamConfig
    from cvbatch.explain.deepdream import Dreamer

    config = DreamConfig(**{"layers": {"last": 1.0}, "octaves": 1, "jitter": 0, "steps": 4} | said)
    return Dreamer(model, fed, SIZE, config)


def plain_loop(model, weights, image, steps, step):
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
                weight * tf.reduce_mean(tf.square(one[:, 2:-2, 2:-2]))
                for weight, one in zip(weights.values(), maps, strict=True)
            )
        canvas += step * tf.math.l2_normalize(tape.gradient(loss, canvas))
    return np.clip(canvas.numpy()[0], 0, 1) * 255


def test_one_octave_is_the_plain_loop():
    model = networks.plain_classifier(size=SIZE)
    image = networks.random_images(1, SIZE)[0]
    first = model.layers[1].name
    weights = {"last": 1.0, first: 0.5}
    found = dreamer(model, layers=weights, step=2.0)(image)
    np.testing.assert_allclose(found, plain_loop(model, weights, image, 4, 2.0), atol=0.6)
    assert np.abs(found.astype(int) - image).max() > 5


def test_octaves_and_jitter_are_those_of_the_plain_loop():
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
    found = dreamer(model, octaves=2, octave_scale=2.0, jitter=3, step=1.0, seed=9)(image)

    def smaller(picture):
        return cv2.resize(picture, (16, 16), interpolation=cv2.INTER_AREA)

    def larger(picture):
        return cv2.resize(picture, (32, 32), interpolation=cv2.INTER_LINEAR)

    def ascend(canvas, rng):
        for _ in range(4):
            down, across = rng.integers(-3, 4, 2)
            shifted = np.roll(np.roll(canvas, down, 0), across, 1)
            tensor = tf.constant(shifted[None])
            with tf.GradientTape() as tape:
                tape.watch(tensor)
                loss = tf.reduce_mean(tf.square(model(tensor * 255)[:, 2:-2, 2:-2]))
            gradient = tape.gradient(loss, tensor).numpy()[0]
            shifted = shifted + gradient / np.linalg.norm(gradient)
            canvas = np.roll(np.roll(shifted, -down, 0), -across, 1)
        return canvas

    rng = np.random.default_rng(9)
    original = image / np.float32(255)
    canvas = ascend(smaller(original), rng)
    lost = original - larger(smaller(original))
    canvas = ascend(larger(canvas) + lost, rng)
    np.testing.assert_allclose(found, np.clip(canvas, 0, 1) * 255, atol=0.6)


def test_layers_of_a_model_inside_a_model_at_several_sizes():
    model = networks.nested_classifier(size=SIZE)
    images = networks.random_images(2, SIZE)
    dream = dreamer(model, layers={"act": 1.0}, octaves=3, jitter=4, seed=7)
    first = dream(images[0])
    assert first.shape == (*SIZE, 3)
    dream(images[1])
    assert np.array_equal(dream(images[0]), first)  # whatever came between
    other = dreamer(model, layers={"act": 1.0}, octaves=3, jitter=4, seed=8)(images[0])
    assert not np.array_equal(other, first)


def test_octaves_end_at_the_image_itself():
    from cvbatch.explain.deepdream import octave_sizes

    assert octave_sizes((100, 50), 1, 1.4) == [(100, 50)]
    assert octave_sizes((100, 50), 3, 2.0) == [(25, 12), (50, 25), (100, 50)]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"layers": {"lost": 1.0}}, "'lost' is no layer of model .*; nearest are last"),
        ({"layers": {"dense": 1.0}}, "layer 'dense.*' gives no map"),
        ({"octaves": 8, "octave_scale": 3.0}, "dream.octaves|cannot take images of"),
    ],
)
def test_what_cannot_dream_is_refused(said, message):
    from cvbatch.core.errors import ModelError

    model = networks.plain_classifier(size=SIZE)
    dense = next(x.name for x in model.layers if x.name.startswith("dense"))
    if "dense" in said.get("layers", {}):
        said = {"layers": {dense: 1.0}}
    with pytest.raises(ModelError, match=message):
        dreamer(model, **said)
