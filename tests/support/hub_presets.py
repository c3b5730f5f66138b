"""Tiny KerasHub tasks with random weights, as presets in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

keras_hub = pytest.importorskip("keras_hub")
models = keras_hub.models
SIDE = 64
INPUT = (SIDE, SIDE, 3)


def _resnet(image_shape=(None, None, 3)):
    return models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 16, 16, 16],
        stackwise_num_blocks=[1, 1, 1, 1],
        stackwise_num_strides=[1, 2, 2, 2],
        block_type="basic_block",
        image_shape=image_shape,
    )


def _converter(prefix: str, **options: Any) -> Any:
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    defaults = {
        "image_size": (SIDE, SIDE),
        "scale": (1 / 255 / deviation).tolist(),
        "offset": (-mean / deviation).tolist(),
    }
    return getattr(keras_hub.layers, f"{prefix}ImageConverter")(**{**defaults, **options})


def _classifier(prefix: str, backbone: Any, **options: Any) -> Any:
    preprocessor = getattr(models, f"{prefix}ImageClassifierPreprocessor")(_converter(prefix))
    return getattr(models, f"{prefix}ImageClassifier")(
        backbone=backbone, num_classes=5, preprocessor=preprocessor, **options
    )


def resnet() -> Any:
    return _classifier("ResNet", _resnet(), activation="softmax")


def mobilenet() -> Any:
    backbone = models.MobileNetBackbone(
        stackwise_expansion=[[16, 24], [24, 36]],
        stackwise_num_blocks=[2, 2],
        stackwise_num_filters=[[8, 8], [12, 12]],
        stackwise_kernel_size=[[3, 3], [5, 5]],
        stackwise_num_strides=[[2, 1], [2, 1]],
        stackwise_se_ratio=[[None, None], [0.25, 0.25]],
        stackwise_activation=[["relu", "relu"], ["hard_swish", "hard_swish"]],
        stackwise_padding=[[1, 1], [2, 2]],
        output_num_filters=32,
        input_activation="hard_swish",
        output_activation="hard_swish",
        input_num_filters=8,
        image_shape=INPUT,
        depthwise_filters=8,
        depthwise_stride=2,
        depthwise_residual=False,
        squeeze_and_excite=0.5,
        last_layer_filter=32,
    )
    return _classifier("MobileNet", backbone)


def vit() -> Any:
    backbone = models.ViTBackbone(
        image_shape=INPUT,
        patch_size=16,
        num_layers=2,
        num_heads=2,
        hidden_dim=16,
        mlp_dim=32,
    )
    return _classifier("ViT", backbone)


def efficientnet() -> Any:
    backbone = models.EfficientNetBackbone(
        stackwise_kernel_sizes=[3, 3],
        stackwise_num_repeats=[1, 2],
        stackwise_input_filters=[8, 8],
        stackwise_output_filters=[8, 16],
        stackwise_expansion_ratios=[1, 4],
        stackwise_squeeze_and_excite_ratios=[0.0, 0.25],
        stackwise_strides=[1, 2],
        stackwise_block_types=["fused", "unfused"],
        stackwise_force_input_filters=[0, 0],
        stackwise_nores_option=[False, False],
        width_coefficient=1.0,
        depth_coefficient=1.0,
        image_shape=INPUT,
    )
    return _classifier("EfficientNet", backbone)


def densenet() -> Any:
    backbone = models.DenseNetBackbone(
        stackwise_num_repeats=[1, 1], growth_rate=8, image_shape=INPUT
    )
    return _classifier("DenseNet", backbone)


def vgg() -> Any:
    backbone = models.VGGBackbone(
        stackwise_num_repeats=[1, 1], stackwise_num_filters=[8, 12], image_shape=INPUT
    )
    return _classifier("VGG", backbone, pooling="avg")


def xception() -> Any:
    backbone = models.XceptionBackbone(
        stackwise_conv_filters=[[8, 8], [12, 12]],
        stackwise_pooling=[True, False],
        image_shape=INPUT,
    )
    return _classifier("Xception", backbone)


def swin() -> Any:
    backbone = models.SwinTransformerBackbone(
        image_shape=INPUT,
        embed_dim=8,
        depths=[1, 1],
        num_heads=[1, 2],
        window_size=4,
    )
    return _classifier("SwinTransformer", backbone)


def deit() -> Any:
    backbone = models.DeiTBackbone(
        image_shape=INPUT,
        patch_size=16,
        num_layers=2,
        num_heads=2,
        hidden_dim=16,
        intermediate_dim=32,
    )
    return _classifier("DeiT", backbone)


def deeplab() -> Any:
    backbone = models.DeepLabV3Backbone(
        image_encoder=_resnet(INPUT),
        projection_filters=8,
        low_level_feature_key="P2",
        spatial_pyramid_pooling_key="P4",
        upsampling_size=4,
        dilation_rates=[2, 4],
        image_shape=INPUT,
    )
    preprocessor = models.DeepLabV3ImageSegmenterPreprocessor(_converter("DeepLabV3"))
    return models.DeepLabV3ImageSegmenter(
        backbone=backbone, num_classes=4, preprocessor=preprocessor
    )


def segformer() -> Any:
    encoder = models.MiTBackbone(
        layerwise_depths=[1, 1],
        image_shape=INPUT,
        hidden_dims=[8, 16],
        num_layers=2,
        layerwise_num_heads=[1, 2],
        layerwise_sr_ratios=[4, 2],
        layerwise_patch_sizes=[7, 3],
        layerwise_strides=[4, 2],
        max_drop_path_rate=0.1,
    )
    backbone = models.SegFormerBackbone(image_encoder=encoder, projection_filters=16)
    preprocessor = models.SegFormerImageSegmenterPreprocessor(_converter("SegFormer"))
    return models.SegFormerImageSegmenter(
        backbone=backbone, num_classes=4, preprocessor=preprocessor
    )


def retinanet() -> Any:
    backbone = models.RetinaNetBackbone(
        image_encoder=_resnet(INPUT),
        min_level=3,
        max_level=5,
        use_p5=False,
        image_shape=INPUT,
    )
    converter = _converter("RetinaNet", crop_to_aspect_ratio=False)
    return models.RetinaNetObjectDetector(
        backbone=backbone,
        num_classes=3,
        preprocessor=models.RetinaNetObjectDetectorPreprocessor(converter),
    )


def d_fine() -> Any:
    encoder = models.HGNetV2Backbone(
        stem_channels=[3, 8, 8],
        stackwise_stage_filters=[[8, 8, 16, 1, 3, 3], [16, 8, 32, 1, 3, 3]],
        apply_downsample=[False, True],
        use_lightweight_conv_block=[False, False],
        depths=[1, 1],
        hidden_sizes=[16, 32],
        embedding_size=8,
        use_learnable_affine_block=True,
        hidden_act="relu",
        image_shape=INPUT,
        out_features=["stage1", "stage2"],
    )
    backbone = models.DFineBackbone(
        backbone=encoder,
        decoder_in_channels=[16, 16],
        encoder_hidden_dim=16,
        num_denoising=0,
        num_labels=3,
        hidden_dim=16,
        learn_initial_query=False,
        num_queries=10,
        anchor_image_size=(SIDE, SIDE),
        feat_strides=[4, 8],
        num_feature_levels=2,
        encoder_in_channels=[16, 32],
        encode_proj_layers=[1],
        num_attention_heads=2,
        encoder_ffn_dim=32,
        num_encoder_layers=1,
        hidden_expansion=0.5,
        depth_multiplier=0.5,
        eval_idx=-1,
        num_decoder_layers=2,
        decoder_attention_heads=2,
        decoder_ffn_dim=32,
        decoder_n_points=[2, 2],
        lqe_hidden_dim=16,
        num_lqe_layers=2,
        out_features=["stage1", "stage2"],
        image_shape=INPUT,
    )
    converter = _converter("DFine", crop_to_aspect_ratio=False)
    return models.DFineObjectDetector(
        backbone=backbone,
        num_classes=3,
        bounding_box_format="yxyx",
        preprocessor=models.DFineObjectDetectorPreprocessor(converter),
    )


def save(build: Any, folder: Path) -> Any:
    """Build a task with random weights and statistics, save it as a preset, and return it."""
    import keras

    keras.utils.set_random_seed(3)
    task = build()
    rng = np.random.default_rng(3)
    for weight in task.weights:
        if weight.path.endswith(("moving_mean", "bias", "beta")):
            weight.assign(rng.normal(0, 0.1, weight.shape))
        elif "box_head" in weight.path:  # boxes near their anchors
            weight.assign(0.5 * weight)
    task.save_to_preset(str(folder))
    return task
