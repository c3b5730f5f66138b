"""Credentials are found and redacted in text, URIs, job files and environment variables."""

import pytest

from cvbatch.config.loader import parse_job
from cvbatch.core.errors import ConfigError
from cvbatch.core.redaction import has_credentials, has_user_info, is_secret_variable, redact

SECRET = "MARKEDsecretMARKEDsecret"


@pytest.fixture(autouse=True)
def keys(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a@b.jpg",
        "/data/a@b:c/x.jpg",
        "s3://bucket/a@b:c/?sig.jpg",
        "gs://bucket/test/x",
        "file:///a@b/c",
        "http://127.0.0.1:9000",
        "x?token=1",  # a name, not a URI
        "s3://arn:aws:s3:eu-west-1:123:accesspoint/x",
    ],
)
def test_text_without_credentials_is_unchanged(text):
    assert not has_credentials(text)
    assert text == redact(text) or "token" in text


@pytest.mark.parametrize(
    "text",
    [
        f"s3://AKID:{SECRET}@bucket/x",
        f"s3://AKID:{SECRET[:5]}/{SECRET[5:]}@bucket/x",  # a key of Amazon's may hold a slash
        f"S3://AKID:{SECRET}@bucket",
        f"gs://{SECRET}@bucket/x",
        f"https://user:{SECRET}@host:9000/x",
        f"s3://bucket/x?X-Amz-Signature={SECRET}&x=1",
        f"https://bucket.host/x?a=1&x-amz-security-token={SECRET}",
        f"https://host/x?AWSAccessKeyId=AKID&Signature={SECRET}",
        f"/a/path/{SECRET}/x",
    ],
)
def test_credentials_are_found_and_redacted(text):
    assert has_credentials(text)
    for around in ("{}", "the bucket of {} does not exist", "{!r}: no"):
        redacted = redact(around.format(text))
        assert SECRET not in redacted
        assert SECRET[5:] not in redacted
        assert "AKID:" not in redacted


def test_a_query_is_no_user_info():
    assert not has_user_info("s3://bucket/x?X-Amz-Signature=1")
    assert has_user_info("s3://key:secret@bucket/x")


@pytest.mark.parametrize(
    ("name", "is_secret"),
    [
        ("BUCKET", False),
        ("TOKENIZER_PATH", False),
        ("SORT_KEY", False),
        ("AWS_REGION", False),
        ("AWS_SECRET_ACCESS_KEY", True),
        ("AWS_ACCESS_KEY_ID", True),
        ("DB_PASSWORD", True),
        ("hf_token", True),
        ("MY_API_KEY", True),
    ],
)
def test_names_of_secret_variables(name, is_secret):
    assert is_secret_variable(name) is is_secret


def job(**changes):
    model = {"task": "classification", "model": "m.keras"} | changes.pop("model", {})
    return {"source": {"uri": "in"}, "sink": {"uri": "out"}, "models": [model]} | changes


@pytest.mark.parametrize(
    ("values", "path"),
    [
        (job(source={"uri": f"s3://AKID:{SECRET}@bucket/in"}), "source.uri"),
        (job(source={"uri": ["in", f"s3://b/x?X-Amz-Signature={SECRET}"]}), "source.uri[1]"),
        (job(sink={"uri": "${MY_VARIABLE}"}), "sink.uri"),
        (job(sink={"uri": "s3://b/${MY_TOKEN}"}), "sink.uri"),
        (job(model={"model": f"s3://AKID:{SECRET}@bucket/x"}), "models[0].model"),
        (job(model={"classes": ["cat", "${AWS_SECRET_ACCESS_KEY}"]}), "models[0].classes[1]"),
        (job(run={"batch_size": "${MY_VARIABLE}"}), "run.batch_size"),
        (job(run={"batch_size": "${MY_TOKEN}"}), "run.batch_size"),
        (job(run={"nosuch": f"https://u:{SECRET}@host"}), "run.nosuch"),
    ],
)
def test_a_job_file_with_credentials_is_refused_without_showing_them(monkeypatch, values, path):
    monkeypatch.setenv("MY_VARIABLE", f"x-{SECRET}-y")
    monkeypatch.setenv("MY_TOKEN", "another-MARKED-secret")
    with pytest.raises(ConfigError) as refusal:
        parse_job(values)
    redacted = str(refusal.value)
    assert f"{path}: " in redacted
    assert "environment" in redacted
    assert "MARKED" not in redacted
    assert "AKID" not in redacted


def test_other_variables_are_allowed(monkeypatch):
    monkeypatch.setenv("BUCKET", "s3://archive/2026")
    assert parse_job(job(source={"uri": "${BUCKET}/x"})).source.uri == ["s3://archive/2026/x"]


SECRETS = ["AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID"]
SECRETS += ["AWS_CONTAINER_AUTHORIZATION_TOKEN", "RAY_AUTH_TOKEN"]


@pytest.mark.parametrize("name", SECRETS)
def test_the_value_of_each_secret_variable_is_redacted(monkeypatch, name):
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert redact(SECRET) == SECRET
    monkeypatch.setenv(name, SECRET)
    assert has_credentials(f"a {SECRET} b")
    assert redact(f"a {SECRET} b") == "a *** b"


@pytest.mark.parametrize(("length", "is_hidden"), [(9, False), (10, True)])
def test_values_shorter_than_ten_characters_are_no_secrets(monkeypatch, length, is_hidden):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x" * length)
    assert has_credentials("x" * length) == is_hidden


@pytest.mark.parametrize("word", ["SECRET", "TOKEN", "PASSWORD", "PASSWD", "PASSPHRASE"])
@pytest.mark.parametrize("form", ["{}", "MY_{}", "{}_OF_MINE", "a_{}_b"])
def test_a_name_that_contains_a_word_for_secret_is_secret(word, form):
    assert is_secret_variable(form.format(word))
    assert is_secret_variable(form.format(word.lower()))


@pytest.mark.parametrize(
    ("name", "is_secret"),
    [
        ("CREDENTIAL", True),
        ("DB_CREDENTIALS", True),
        ("VAULT_SECRETS", True),
        ("AWS_ACCESS_KEY_ID", True),
        ("OPENAI_API_KEY", True),
        ("TLS_PRIVATE_KEY", True),
        ("AZURE_STORAGE_ACCOUNT_KEY", True),
        ("AZURE_STORAGE_KEY", True),
        ("PRIMARY_KEY", False),
        ("API_KEYBOARD", False),
        ("TOKENS_PER_S", False),
        ("AWS_REGION", False),
        ("HOME", False),
        ("", False),
    ],
)
def test_which_names_are_secret_variables(name, is_secret):
    assert is_secret_variable(name) == is_secret
