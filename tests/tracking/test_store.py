"""Whether an error is worth waiting for, and where experiments keep their artifacts."""

import errno
from pathlib import Path

import pytest
import requests
from botocore.exceptions import ClientError
from mlflow.exceptions import ErrorCode, MlflowException, RestException
from mlflow.utils.file_utils import local_file_uri_to_path

from experiments import ExperimentError
from experiments.tracking.store import (
    StoreLost,
    StoreRefused,
    call_store,
    check_store,
    experiment_id,
    is_refusal,
    store_error,
)


def mlflow_error(code):
    return MlflowException("no", error_code=ErrorCode.Value(code))


def http_error(status):
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError(f"{status}", response=response)


def proxy_error(status):
    return MlflowException(f"API request to endpoint /x failed with error code {status} != 200. Response body: '<p>'")


REFUSALS = [
    *(
        mlflow_error(code)
        for code in (
            "INVALID_PARAMETER_VALUE", "INVALID_STATE", "PERMISSION_DENIED", "RESOURCE_ALREADY_EXISTS", "NOT_FOUND",
            "RESOURCE_DOES_NOT_EXIST", "UNAUTHENTICATED", "ENDPOINT_NOT_FOUND", "CUSTOMER_UNAUTHORIZED",
            "RESOURCE_CONFLICT", "BAD_REQUEST", "NOT_IMPLEMENTED",
        )
    ),
    RestException({"error_code": "403", "message": "no"}),
    *(make(status) for make in (http_error, proxy_error) for status in (400, 401, 403, 404, 405, 413, 422, 501)),
    *(
        OSError(number, "no")
        for number in (errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOENT)
    ),
    ClientError({"ResponseMetadata": {"HTTPStatusCode": 403}}, "PutObject"),
    ModuleNotFoundError("No module named 'psycopg'"),
]  # fmt: skip
OUTAGES = [
    *(
        mlflow_error(code)
        for code in ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "DEADLINE_EXCEEDED", "REQUEST_LIMIT_EXCEEDED",
                     "CANCELLED", "RESOURCE_EXHAUSTED")
    ),
    *(make(status) for make in (http_error, proxy_error) for status in (408, 425, 429, 499, 500, 502, 503, 504)),
    *(OSError(number, "no") for number in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ECONNREFUSED, errno.ESTALE)),
    requests.ConnectionError("no"),
    TimeoutError(),
    ClientError({"ResponseMetadata": {"HTTPStatusCode": 503}}, "PutObject"),
]  # fmt: skip


@pytest.mark.parametrize("error", REFUSALS, ids=repr)
def test_a_refusal_is_not_waited_for(error):
    assert is_refusal(error)
    assert type(store_error("http://store", error)) is StoreRefused


@pytest.mark.parametrize("error", OUTAGES, ids=repr)
def test_an_outage_is_waited_for(error):
    assert not is_refusal(error)
    assert type(store_error("http://store", error)) is StoreLost


@pytest.mark.parametrize("uri", ["sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite://folder/mlflow.db"])
def test_a_sqlite_store_without_a_file_is_refused(uri, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EXPERIMENTS_HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(ExperimentError) as error:
        check_store()
    assert str(error.value) == (
        f"MLFLOW_TRACKING_URI={uri} does not name a file. "
        "Name one, as in: sqlite:///mlflow.db, or with its full path: sqlite:////home/me/mlflow.db"
    )
    assert list(tmp_path.iterdir()) == []


def test_experiments_with_long_names_have_a_folder_each(store):
    names = ["実" * 29, "実" * 30, "a" * 500]
    places = [store.get_experiment(experiment_id(store, name)).artifact_location for name in names]
    folders = [Path(local_file_uri_to_path(place)).name for place in places]
    assert [len(folder) <= 100 for folder in folders] == [True] * 3
    assert len(set(folders)) == 3
    assert [store.get_experiment_by_name(name).name for name in names] == names


def test_a_name_that_mlflow_refuses_is_refused_at_once(store):
    with pytest.raises(StoreRefused, match=r"^The tracking store .* refuses it: .*500"):
        call_store(experiment_id, store, "a" * 501)
