"""Boxes of every detector format equal those of the original library's own post-processing."""

from types import SimpleNamespace

import numpy as np
import pytest

from cvbatch.core.errors import ModelError
from cvbatch.core.types import ImageBatch, ModelSpec
from cvbatch.inference import builder
from cvbatch.inference.predictor import LoadedModel, Predictor
from cvbatch.inference.programs import BuildRequest, identify
from cvbatch.storage.store import Storage
from tests.support import detector_outputs as seeded
from tests.support.detectors import (
    assert_same_boxes,
    compiled,
    detect,
    numbered_images,
    parse_detector,
    reference,
    replaying_network,
)

pytestmark = pytest.mark.keras
SIZE = seeded.SIZE
NAMES = ["a", "b", "c"]
THRESHOLDS = {"score_threshold": seeded.SCORE_THRESHOLD, "iou_threshold": seeded.IOU_THRESHOLD}
NO_SUPPRESSION = {"score_threshold": seeded.SCORE_THRESHOLD, "iou_threshold": 1}


def found_boxes(outputs, **fields):
    return detect(replaying_network(outputs, SIZE), NAMES, **{**THRESHOLDS, **fields})


@pytest.mark.runs(
    "ultralytics YOLO v8 to v12 head (B, 4 + C, N)", "`detector: yolo_v8` or `auto`, `rescale`"
)
def test_yolo_v8():
    boxes = found_boxes(seeded.yolo_v8())
    assert_same_boxes(boxes, reference("yolo_v8"), SIZE)


def test_a_box_counts_for_its_best_class_only_at_any_threshold():
    fields = {"score_threshold": 0, "iou_threshold": 1, "max_detections": 100_000}
    table = seeded.yolo_v8()["output0"]
    for rows, columns in zip(found_boxes([table], **fields), table, strict=True):
        assert len(rows) == seeded.num_cells()
        np.testing.assert_array_equal(rows[:, 4], -np.sort(-columns[4:].max(axis=0)))


def test_yolo_v8_transposed():
    table = seeded.yolo_v8()["output0"].transpose(0, 2, 1).copy()
    assert_same_boxes(found_boxes([table]), reference("yolo_v8"), SIZE)


@pytest.mark.runs("YOLOv5 head (B, N, 5 + C), with objectness", "`detector: yolo_v5` or `auto`")
def test_yolo_v5():
    boxes = found_boxes(seeded.yolo_v5())
    assert_same_boxes(boxes, reference("yolo_v5"), SIZE)


@pytest.mark.runs(
    "YOLOv10 or YOLO26 end-to-end head (B, 300, 6)", "`detector: yolo_end_to_end` or `auto`"
)
def test_yolo_end_to_end_is_not_suppressed():
    boxes = found_boxes(seeded.yolo_end_to_end(), iou_threshold=0)
    assert_same_boxes(boxes, reference("yolo_end_to_end"), SIZE)


@pytest.mark.runs(
    "DETR, YOLOS: logits (B, N, C + 1) with a last class no object",
    "`detector: detr`, `iou_threshold: 1`, `class_agnostic: true`",
)
def test_detr():
    boxes = found_boxes(seeded.detr(), class_agnostic=True, **NO_SUPPRESSION)
    assert_same_boxes(boxes, reference("detr"), SIZE)


@pytest.mark.runs(
    "RT-DETR, D-FINE, Deformable DETR: logits (B, N, C)",
    "`detector: rt_detr`, `iou_threshold: 1`",
)
def test_rt_detr():
    boxes = found_boxes(seeded.rt_detr(), **NO_SUPPRESSION)
    assert_same_boxes(boxes, reference("rt_detr"), SIZE)


@pytest.mark.runs(
    "torchvision RetinaNet: cls_logits and bbox_regression of all levels",
    "`detector: retinanet`, `anchors: {clip: true}`",
)
def test_retinanet_of_torchvision():
    boxes = found_boxes(seeded.retinanet(), detector="retinanet", anchors={"clip": True})
    assert_same_boxes(boxes, reference("retinanet"), SIZE)


@pytest.mark.runs(
    "KerasHub RetinaNet, without its decoder", "`detector: retinanet` or `auto`, `class_agnostic`"
)
def test_retinanet_of_keras_hub():
    """The anchors are those of the network's generator, which are not the defaults."""
    hub = pytest.importorskip("keras_hub")
    from keras import ops

    generator = hub.layers.AnchorGenerator("yxyx", 3, 6, 2, [0.4, 1.0, 2.5], 3.0)
    count = 6 * seeded.num_cells((8, 16, 32, 64))
    outputs = {name: array[:, :count] for name, array in seeded.retinanet().items()}
    model = replaying_network(outputs, SIZE)
    model.anchor_generator = generator
    found = detect(model, NAMES, class_agnostic=True, **THRESHOLDS)
    decoder = hub.layers.NonMaxSuppression(
        "yxyx", from_logits=True, iou_threshold=seeded.IOU_THRESHOLD,
        confidence_threshold=seeded.SCORE_THRESHOLD,
    )  # fmt: skip
    images = ops.zeros((2, *SIZE, 3))
    owner = SimpleNamespace(
        anchor_generator=generator, bounding_box_format="yxyx", prediction_decoder=decoder
    )
    decode = hub.models.RetinaNetObjectDetector.decode_predictions
    assert_same_boxes(found, rows_of_hub(decode(owner, outputs, images)), SIZE)


def rows_of_hub(decoded):
    """Return rows of KerasHub's decoder: boxes yxyx, without its padding of −1."""
    arrays = {name: np.asarray(tensor) for name, tensor in decoded.items()}
    columns = [arrays["boxes"][..., [1, 0, 3, 2]]]
    columns += [arrays[name][..., None] for name in ("confidence", "labels")]
    rows = np.concatenate(columns, axis=2)
    return [rows[i, : arrays["num_detections"][i]] for i in range(len(rows))]


@pytest.mark.soak
def test_a_whole_retinanet_of_keras_hub(monkeypatch):
    """The network's own decode_predictions; its first weights would shift all boxes outside."""
    hub = pytest.importorskip("keras_hub")
    import keras

    keras.utils.set_random_seed(0)
    encoder = hub.models.ResNetBackbone(
        [64], [7], [64] * 4, [1] * 4, [1, 2, 2, 2], "basic_block", image_shape=(*SIZE, 3)
    )
    backbone = hub.models.RetinaNetBackbone(encoder, min_level=3, max_level=5, use_p5=False)
    generator = hub.layers.AnchorGenerator("yxyx", 3, 5, 2, [0.5, 1.0, 2.0], 3.0)
    decoder = hub.layers.NonMaxSuppression("yxyx", True, 0.5, 0.5)
    model = hub.models.RetinaNetObjectDetector(
        backbone, len(NAMES), "yxyx", generator, prediction_decoder=decoder
    )
    for weight in model.weights:
        if "head" in weight.path:
            weight.assign(keras.random.normal(weight.shape, 0, 0.01, seed=1))
    images = np.random.default_rng(3).integers(0, 256, (2, *SIZE, 3), np.uint8)
    monkeypatch.setattr("tests.support.detectors.numbered_images", lambda count, size: images)
    outputs = model(images.astype("float32"), training=False)
    expected = rows_of_hub(model.decode_predictions(outputs, images))
    found = detect(
        model, NAMES, engine="tensorflow", image_size=list(SIZE), class_agnostic=True,
        score_threshold=0.5, iou_threshold=0.5, max_detections=100,
    )  # fmt: skip
    assert_same_boxes(found, expected, SIZE)


@pytest.mark.runs(
    "KerasHub D-FINE, without its decoder", "`detector: rt_detr` or `auto`, `class_agnostic`"
)
def test_d_fine_of_keras_hub():
    hub = pytest.importorskip("keras_hub")
    from keras import ops

    outputs = seeded.rt_detr()
    decoder = hub.layers.NonMaxSuppression(
        "yxyx", from_logits=True, iou_threshold=seeded.IOU_THRESHOLD,
        confidence_threshold=seeded.SCORE_THRESHOLD,
    )  # fmt: skip
    decode = hub.models.DFineObjectDetector.decode_predictions
    owner = SimpleNamespace(prediction_decoder=decoder)
    expected = rows_of_hub(decode(owner, outputs, ops.zeros((2, *SIZE, 3))))
    others = {"enc_topk_logits": outputs["logits"], "enc_topk_bboxes": outputs["pred_boxes"]}
    found = found_boxes({**outputs, **others}, class_agnostic=True)
    assert_same_boxes(found, expected, SIZE)


@pytest.mark.runs(
    "KerasCV or KerasHub boxes after suppression: {boxes, confidence, classes or labels}",
    "`classes`, `box_format`",
)
def test_suppressed_boxes_are_returned_as_they_are():
    """Also where they overlap more than iou_threshold, and without their padding."""
    found = detect(
        replaying_network(suppressed_outputs(), SIZE), NAMES, box_format="yxyx",
        iou_threshold=0.0, score_threshold=seeded.SCORE_THRESHOLD,
    )  # fmt: skip
    assert_same_boxes(found, reference("rt_detr"), SIZE)


def suppressed_outputs():
    """Return the boxes of a reference as KerasHub's decoder does: padded with −1 to 40 boxes."""
    padded = np.full((2, 40, 6), -1, np.float32)
    for image, rows in enumerate(reference("rt_detr")):
        padded[image, : len(rows)] = rows
    return {
        "boxes": padded[..., [1, 0, 3, 2]],
        "confidence": padded[..., 4],
        "labels": padded[..., 5].astype(np.int32),
        "num_detections": (padded[..., 4] > 0).sum(axis=1).astype(np.int32),
    }


def test_boxes_after_the_number_of_detections_are_ignored():
    outputs = suppressed_outputs()
    for name in ("confidence", "labels"):  # such as TensorRT's, which does not clear the rest
        outputs[name] = np.where(outputs[name] < 0, 1, outputs[name]).astype(outputs[name].dtype)
    model = replaying_network(outputs, SIZE)
    found = detect(model, NAMES, box_format="yxyx", score_threshold=seeded.SCORE_THRESHOLD)
    assert_same_boxes(found, reference("rt_detr"), SIZE)


@pytest.mark.runs(
    "TensorFlow Object Detection API: detection_boxes, detection_scores, detection_classes",
    "`detector: tf_detection` or `auto`, `classes`",
)
def test_tf_detection():
    """Boxes yxyx in fractions, class ids from 1 as floats, padding with zeros."""
    given = suppressed_outputs()
    is_box = given["confidence"] > 0
    scale = np.array([SIZE[0], SIZE[1]] * 2, np.float32)
    outputs = {
        "detection_boxes": np.where(is_box[..., None], given["boxes"] / scale, 0),
        "detection_scores": np.where(is_box, given["confidence"], 0),
        "detection_classes": (given["labels"] + 1).astype(np.float32),
        "num_detections": given["num_detections"].astype(np.float32),
    }
    found = found_boxes(outputs, score_threshold=0.0, iou_threshold=0.0)
    assert_same_boxes(found, reference("rt_detr"), SIZE)


@pytest.mark.runs("scores (B, N) of one class", "as they are")
@pytest.mark.parametrize("is_listed", [False, True])
def test_scores_of_one_class(is_listed):
    boxes = seeded.pixels(seeded.rt_detr()["pred_boxes"])
    scores = seeded.sigmoid(seeded.rt_detr()["logits"][..., 0])
    outputs = [boxes, scores] if is_listed else {"boxes": boxes, "scores": scores}
    fields = {"box_format": "center_xywh", **NO_SUPPRESSION}
    for image, rows in enumerate(detect(replaying_network(outputs, SIZE), ["a"], **fields)):
        best = -np.sort(-scores[image])
        np.testing.assert_allclose(rows[:, 4], best[best >= seeded.SCORE_THRESHOLD], atol=1e-6)
        assert not rows[:, 5].any()


@pytest.mark.runs("outputs without names: a list of boxes and scores", "found by their shapes")
def test_a_list_of_outputs():
    outputs = seeded.rt_detr()
    listed = [seeded.sigmoid(outputs["logits"]), seeded.pixels(outputs["pred_boxes"])]
    found = found_boxes(listed, box_format="center_xywh", iou_threshold=1)
    assert_same_boxes(found, reference("rt_detr"), SIZE)


RECOGNISED = {
    "yolo_v8": seeded.yolo_v8(),
    "yolo_v5": seeded.yolo_v5(),
    "yolo_end_to_end": seeded.yolo_end_to_end(),
    "detr": seeded.detr(),
    "rt_detr": seeded.rt_detr(),
    "retinanet": seeded.retinanet(),
    "suppressed": suppressed_outputs(),
}


@pytest.mark.parametrize("detector", RECOGNISED)
def test_auto_chooses_the_row_that_the_job_may_name(detector):
    from cvbatch.inference.detector_formats import resolve

    outputs = RECOGNISED[detector]
    for choice in ("auto", detector):
        config = parse_detector(detector=choice)
        assert resolve(config, outputs, SIZE, len(NAMES)).detector == detector


def test_boxes_and_scores_of_all_classes_are_used_where_there_are_class_ids_too():
    from cvbatch.inference.detector_formats import resolve

    outputs = suppressed_outputs()
    scores = np.zeros((2, 40, len(NAMES)), np.float32)
    assert resolve(parse_detector(), {**outputs, "scores": scores}, SIZE).detector == "boxes_scores"


def build_file(path, **fields):
    """Build the program of a saved detector in this process, as the builder of a job does."""
    storage, config = Storage(), parse_detector(**{**fields, "model": str(path)})
    request = BuildRequest(config, identify(storage, config), "litert", "float32", 2)
    return builder.build(storage, request)


def test_a_job_reports_the_detector_that_it_recognised(tmp_path):
    replaying_network([seeded.yolo_v8()["output0"]], SIZE).save(tmp_path / "yolo.keras")
    built = build_file(tmp_path / "yolo.keras")
    assert built.spec.classes == ("0", "1", "2")
    assert "yolo.keras' as detector yolo_v8: its scores are probab" in built.activation_reason


def test_class_ids_need_class_names(tmp_path):
    replaying_network([seeded.yolo_end_to_end()["output0"]], SIZE).save(tmp_path / "end.keras")
    with pytest.raises(ModelError, match="set classes to their names"):
        build_file(tmp_path / "end.keras")
    assert build_file(tmp_path / "end.keras", classes=NAMES).spec.classes == tuple(NAMES)


def test_boxes_in_another_format_than_the_detectors():
    """Ultralytics' exports to TensorFlow have boxes in fractions of the input."""
    table = seeded.yolo_v8()["output0"]
    table[:, :4] /= np.array([SIZE[1], SIZE[0]] * 2, np.float32)[:, None]
    found = found_boxes([table], box_format="rel_center_xywh")
    assert_same_boxes(found, reference("yolo_v8"), SIZE)
    with pytest.raises(ModelError, match="set box_format to it") as refused:
        found_boxes([table])
    assert "rel_center_xywh" in str(refused.value)


@pytest.mark.parametrize(
    ("outputs", "fields", "message"),
    [
        (seeded.detr(), {}, "detr .* or rt_detr .*set detector"),
        (seeded.retinanet(), {"anchors": {"num_scales": 2}}, "1,542 anchors; set anchors"),
        (seeded.detr(), {"detector": "detr", "activation": "sigmoid"}, "remove activation"),
        (seeded.detr(), {"detector": "detr", "anchors": {}}, "remove anchors"),
        (seeded.retinanet(), {"box_format": "yxyx"}, "remove box_format"),
        (seeded.detr(), {"detector": "yolo_v8"}, "requires one output"),
        ({"a": seeded.detr()["logits"]}, {}, "set detector to it"),
        (suppressed_outputs(), {"box_format": "yxyx"}, "class ids 0 to 2, but there are 2 class"),
    ],
)
def test_what_cannot_be_known_is_refused(outputs, fields, message):
    with pytest.raises(ModelError, match=message):
        detect(replaying_network(outputs, SIZE), ["a", "b"], **fields)


def test_a_second_sigmoid_is_refused():
    outputs = seeded.rt_detr()
    outputs["logits"] = seeded.sigmoid(outputs["logits"])
    with pytest.raises(ModelError, match="probabilities already; set detector: boxes_scores"):
        found_boxes(outputs, detector="rt_detr")


def test_boxes_that_no_decoder_gave_are_refused():
    """YOLOX without decode_in_inference has offsets from cells instead of boxes."""
    random = np.random.default_rng(0)
    table = random.normal(0, 2, (2, seeded.num_cells(), 5 + len(NAMES))).astype(np.float32)
    table[..., 4:] = seeded.sigmoid(table[..., 4:])
    with pytest.raises(ModelError, match="not those of detector yolo_v5; set detector"):
        found_boxes([table])


def test_an_image_with_an_unknown_class_id_is_a_failed_row():
    outputs = suppressed_outputs()
    model = replaying_network(outputs, SIZE)
    program = compiled(model, parse_detector(box_format="yxyx"), NAMES)
    assert len(outputs["labels"][1][outputs["labels"][1] == 2])  # the last class occurs
    spec = ModelSpec("net", "detection", ("a", "b"), *SIZE, "stretch", "0" * 64)
    images = numbered_images(2, SIZE)
    batch = ImageBatch(
        "chunk", ["0", "1"], ["", ""], np.full(2, SIZE[1], np.int32),
        np.full(2, SIZE[0], np.int32), {}, {spec.input_key: images},
    )  # fmt: skip
    loaded = LoadedModel(parse_detector(box_format="yxyx"), spec, program, 2)
    failures = Predictor([loaded])(batch).failures
    assert "a class id without a name" in failures[1].message


@pytest.mark.runs(
    "SSD: deltas and class logits of priors", "the layer `cvbatch.models.box_decoding.AnchorDecode`"
)
def test_ssd_decoded_by_a_layer(tmp_path):
    """The layer, saved and loaded, equals torchvision's SSD. Its boxes are inside the image."""
    import keras

    from cvbatch.models.box_decoding import AnchorDecode

    raw = replaying_network(seeded.ssd(), SIZE)
    decode = AnchorDecode(seeded.ssd_priors(), name="decode")
    shapes = {name: keras.Input(array.shape[1:]) for name, array in seeded.ssd().items()}
    head = keras.Model(list(shapes.values()), decode(list(shapes.values())))
    head.save(tmp_path / "head.keras")
    loaded = keras.saving.load_model(tmp_path / "head.keras", safe_mode=True)
    model = keras.Model(raw.input, loaded([raw.output[name] for name in shapes]))
    found = detect(model, NAMES, **THRESHOLDS)
    assert_same_boxes(found, reference("ssd"), SIZE)
