"""The name of a model decides its format; formats that do not run are refused with the way on."""

import pytest

from cvbatch.core.errors import ModelError
from cvbatch.core.model_formats import format_of, refusal, short_name
from cvbatch.models.job_defaults import complete_model


@pytest.mark.parametrize(
    ("model", "key", "name"),
    [
        ("Xception", "zoo", "Xception"),
        ("models/pets.v2.keras", "keras", "pets.v2"),
        ("s3://bucket/old.h5", "h5", "old"),
        ("yolo.onnx", "onnx", "yolo"),
        ("gs://bucket/a/mobile.tflite", "tflite", "mobile"),
        ("exported.keras/", "folder", "exported.keras"),
        ("s3://bucket/saved/1", "folder", "1"),
        ("./saved", "folder", "saved"),
        ("keras_hub://resnet_50_imagenet", "hub", "resnet_50_imagenet"),
    ],
)
def test_the_name_decides(model, key, name):
    assert (format_of(model).key, short_name(model), refusal(model)) == (key, name, "")


@pytest.mark.parametrize(
    ("model", "kind", "remedy"),
    [
        pytest.param(
            "a/b.pt", "a PyTorch file", "yolo export model=b.pt format=onnx",
            marks=pytest.mark.runs(
                "PyTorch checkpoint (.pt, .pth, .safetensors, ...)", "no: export it to ONNX"
            ),
        ),
        ("NET.PTH", "a PyTorch file", "torch.onnx.export(model.eval(), (images,), 'NET.onnx')"),
        pytest.param(
            "hf://google/vit", "a model of the Hugging Face Hub", "from_pretrained('google/vit')",
            marks=pytest.mark.runs(
                "`hf://OWNER/NAME`", "no: download it with `hf download`; nothing is downloaded"
            ),
        ),
        pytest.param(
            "kaggle://keras/resnet/keras/r50", "a model of Kaggle",
            "model_download('keras/resnet/keras/r50')",
            marks=pytest.mark.runs(
                "`kaggle://HANDLE`", "no: download it with kagglehub; nothing is downloaded"
            ),
        ),
        ("saved/saved_model.pb", "one file of a SavedModel", "set model to its folder"),
        pytest.param(
            "frozen.pb", "a frozen TensorFlow graph", "tf2onnx.convert --graphdef frozen.pb",
            marks=pytest.mark.runs("frozen TensorFlow graph (.pb)", "no: convert it with tf2onnx"),
        ),
        ("forest.pkl", "a pickle", "could run any code"),
        ("a.mlmodel", "a model for one device", "ONNX"),
        ("a.tar.gz", "an archive", "unpack it"),
        ("model.json", "a network without weights", "model.save('model.keras')"),
        ("a.weights.h5", "a weights file without a network", "weights to this file"),
    ],
)  # fmt: skip
def test_other_formats_are_refused_with_the_way_on(model, kind, remedy):
    assert format_of(model).key == "refused"
    assert kind in refusal(model)
    assert remedy in refusal(model)


def test_a_refused_model_without_a_task_is_refused_for_its_format():
    with pytest.raises(ModelError, match=r"net\.pt' is a PyTorch file"):
        complete_model({"model": "net.pt"})


@pytest.mark.parametrize(
    ("content", "task", "is_assumed"),
    [
        ('{"registered_name": "keras_hub>DFineObjectDetector"}', "detection", False),
        ('{"registered_name": "keras_hub>SegFormerImageSegmenter"}', "segmentation", False),
        ('{"registered_name": "keras_hub>GemmaCausalLM"}', "classification", True),
        ("[" * 100_000, "classification", True),
        ("[]", "classification", True),
        (None, "classification", True),  # no such file
    ],
)
def test_a_folder_without_a_task_has_that_of_its_preset(content, task, is_assumed, tmp_path):
    if content is not None:
        (tmp_path / "task.json").write_text(content)
    section, note = complete_model({"model": f"{tmp_path}/"})
    assert section["task"] == task
    assert ("is not known" in note) == is_assumed
