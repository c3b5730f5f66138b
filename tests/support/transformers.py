"""Small vision transformers of plain Keras layers, with random weights."""

from __future__ import annotations

GRID = (4, 6)  # rows and columns of patches
PATCH = 8
SIZE = (GRID[0] * PATCH, GRID[1] * PATCH)
WIDTH = 16


def attention_block(x, index, attention=None):
    """Return a pre-norm block; `attention` is a function of the normalised tokens."""
    from keras import layers

    own = layers.MultiHeadAttention(2, WIDTH // 2, name=f"block{index}_attention")
    attention = attention or (lambda y: own(y, y))
    normed = layers.LayerNormalization(name=f"block{index}_norm1")(x)
    x = layers.Add(name=f"block{index}_add1")([x, attention(normed)])
    y = layers.LayerNormalization(name=f"block{index}_norm2")(x)
    y = layers.Dense(2 * WIDTH, activation="gelu")(y)
    y = layers.Dropout(0.1)(layers.Dense(WIDTH)(y))
    return layers.Add(name=f"block{index}_add2")([x, y])


def manual_attention(x):
    """Return attention of one head made of Dense layers and operations, without an own layer."""
    import keras
    from keras import layers

    count = x.shape[1]
    query, key, value = (
        keras.ops.transpose(
            layers.Reshape((count, 4, WIDTH // 4))(layers.Dense(WIDTH)(x)), (0, 2, 1, 3)
        )
        for _ in range(3)
    )
    scores = keras.ops.matmul(query, keras.ops.transpose(key, (0, 1, 3, 2)))
    weights = keras.ops.softmax(scores)
    mixed = keras.ops.transpose(keras.ops.matmul(weights, value), (0, 2, 1, 3))
    return layers.Dense(WIDTH)(layers.Reshape((count, WIDTH))(mixed))


def vision_transformer(
    *, num_extra=1, pooling="class", by_reshape=False, attention=None, order=None
):
    """Return a transformer of 5 classes.

    Args:
        num_extra: class and register tokens before the patches.
        pooling: "class": the head reads the first token; "mean": the mean of the patches.
        by_reshape: patches by Reshape and Permute instead of a convolution.
        attention: of the blocks; None: Keras' MultiHeadAttention.
        order: permutation of the patches; None: row-major.
    """
    import keras
    from keras import layers

    keras.utils.set_random_seed(11)
    (rows, columns), count = GRID, GRID[0] * GRID[1]
    image = keras.Input((*SIZE, 3))
    x = layers.Rescaling(1 / 127.5, offset=-1)(image)
    if by_reshape:
        x = layers.Reshape((rows, PATCH, columns, PATCH * 3))(x)
        x = layers.Reshape((count, PATCH * PATCH * 3))(layers.Permute((1, 3, 2, 4))(x))
        x = layers.Dense(WIDTH, name="patches")(x)
    else:
        x = layers.Conv2D(WIDTH, PATCH, strides=PATCH, name="patches")(x)
        x = layers.Reshape((count, WIDTH))(x)
    if order is not None:
        x = keras.ops.take(x, order, axis=1)
    if num_extra:
        extra = layers.Dense(num_extra * WIDTH, bias_initializer="normal")(x[:, 0] * 0.0)
        x = layers.Concatenate(axis=1)([layers.Reshape((num_extra, WIDTH))(extra), x])
    tokens = count + num_extra
    positions = layers.Embedding(tokens, WIDTH, name="positions")
    x = x + positions(keras.ops.arange(tokens))[None]
    for index in range(2):
        x = attention_block(x, index, attention)
    x = layers.LayerNormalization(name="norm")(x)
    x = x[:, 0] if pooling == "class" else layers.GlobalAveragePooling1D()(x)
    return keras.Model(image, layers.Dense(5, activation="softmax")(x), name="vit")


def token_grad_cam(split, images, start, grid=GRID, class_rank=0):
    """Return heatmaps (K, h, w) of a network that is split at its tokens, by a gradient tape.

    Args:
        split: function of images (1, H, W, 3) that returns tokens (1, N, D), and a function of
            tokens that returns scores (1, C).
        start: number of tokens before the patches.
    """
    import numpy as np
    import tensorflow as tf

    from tests.support.reference_arrays import grad_cam

    maps = []
    for image in images:
        tokens, head = split(image[None].astype("float32"))
        with tf.GradientTape() as tape:
            tape.watch(tokens)
            scores = head(tokens)
            score = scores[0, int(np.argsort(-scores[0].numpy(), kind="stable")[class_rank])]
        gradient = tape.gradient(score, tokens)
        count = grid[0] * grid[1]
        arrays = (
            x[0, start : start + count].numpy().reshape(*grid, -1) for x in (tokens, gradient)
        )
        maps.append(grad_cam(*arrays))
    return np.stack(maps)
