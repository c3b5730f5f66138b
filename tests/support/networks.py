"""Small Keras networks for tests, and a reference implementation of Grad-CAM for them."""

from __future__ import annotations

import numpy as np


def plain_classifier(num_classes=5, size=(33, 32)):
    """Convolutions, pooling and a hidden ReLU layer, like the head of VGG."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((*size, 3)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(8, 3, activation="relu", padding="same"),
            layers.MaxPool2D(),
            layers.Conv2D(16, 3, activation="relu", padding="same", name="last"),
            layers.MaxPool2D(),
            layers.Flatten(),
            layers.Dense(32, activation="relu"),
            layers.Dense(num_classes, activation="softmax"),
        ]
    )


def nested_classifier(num_classes=7, size=(32, 32)):
    """A nested backbone model, on which many Grad-CAM tools fail."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(2)
    backbone = keras.Sequential(
        [
            keras.Input((*size, 3)),
            layers.Rescaling(1 / 127.5, offset=-1),
            layers.Conv2D(8, 3, padding="same"),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Conv2D(12, 3, strides=2),
            layers.LeakyReLU(name="act"),
        ],
        name="inner",
    )
    image = keras.Input((*size, 3))
    pooled = layers.Dropout(0.5)(layers.GlobalAveragePooling2D()(backbone(image)))
    return keras.Model(image, layers.Dense(num_classes, activation="softmax")(pooled))


def two_headed(num_classes=4, size=(32, 32)):
    """A network with two outputs: class scores and a map."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(3)
    image = keras.Input((*size, 3))
    features = layers.Rescaling(1 / 255)(image)
    features = layers.Conv2D(8, 3, padding="same", activation="relu", name="features")(features)
    maps = layers.Conv2D(2, 1, activation="softmax", name="maps")(features)
    flat = layers.Flatten()(layers.MaxPool2D(4)(features))
    scores = layers.Dense(num_classes, activation="softmax", name="classes")(flat)
    return keras.Model(image, {"classes": scores, "maps": maps})


def segmenter(num_classes=3, size=(32, 24)):
    """A softmax over classes per pixel."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(4)
    image = keras.Input((*size, 3))
    x = layers.Rescaling(1 / 255)(image)
    x = layers.Conv2D(6, 3, padding="same", activation="relu")(x)
    return keras.Model(
        image, layers.Conv2D(num_classes, 3, padding="same", activation="softmax")(x)
    )


def detector(num_classes=2, size=(32, 32)):
    """A detector of a fixed number of boxes, whose scores depend on the colours of the image."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(5)
    image = keras.Input((*size, 3))
    x = layers.Rescaling(1 / 255)(image)
    x = layers.Conv2D(4 + num_classes, 8, strides=8)(x)
    x = layers.Reshape((-1, 4 + num_classes))(x)
    corners = layers.Activation("sigmoid")(x[..., :2]) * 16
    sides = layers.Activation("sigmoid")(x[..., 2:4]) * 16
    boxes = layers.Concatenate()([corners, corners + sides])
    return keras.Model(image, {"boxes": boxes, "scores": layers.Activation("sigmoid")(x[..., 4:])})


def localizer(num_classes=3, size=(32, 32)):
    """Class scores and one box."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(6)
    image = keras.Input((*size, 3))
    x = layers.Conv2D(8, 3, activation="relu")(layers.Rescaling(1 / 255)(image))
    x = layers.GlobalAveragePooling2D()(x)
    scores = layers.Dense(num_classes, activation="softmax")(x)
    return keras.Model(image, {"scores": scores, "box": layers.Dense(4, activation="sigmoid")(x)})


def age_and_gender(size=(32, 32)):
    """A backbone with three heads, one of which is a convolution."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(11)
    image = keras.Input((*size, 3))
    x = layers.Conv2D(8, 3, activation="relu", name="features")(layers.Rescaling(1 / 255)(image))
    pooled = layers.GlobalAveragePooling2D(keepdims=True, name="pooled")(x)
    flat = layers.Flatten(name="flat")(pooled)
    age = layers.Dense(1, name="years")(layers.Dropout(0.5)(flat))
    gender = layers.Dense(2, activation="softmax", name="sex")(flat)
    mood = layers.Reshape((3,))(layers.Conv2D(3, 1, name="conv_head")(pooled))
    return keras.Model(image, {"age": age, "gender": gender, "mood": mood})


def textbook_grad_cam(model, features, images, output=None, class_rank=0):
    """Return heatmaps (K, h, w), one image and one gradient tape at a time."""
    import keras
    import tensorflow as tf

    from tests.support.reference_arrays import grad_cam

    scores = model.outputs[0] if output is None else model.output[output]
    two_outputs = keras.Model(model.inputs, [features, scores])
    maps = []
    for image in images:
        with tf.GradientTape() as tape:
            activations, row = two_outputs([image[None].astype("float32")], training=False)
            class_id = int(tf.argsort(row[0], direction="DESCENDING", stable=True)[class_rank])
            score = row[:, class_id]
        gradients = tape.gradient(score, activations)
        maps.append(grad_cam(activations[0].numpy(), gradients[0].numpy()))
    return np.stack(maps)


def random_images(count, size, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, *size, 3), np.uint8)
