"""Models that cannot be used."""

from __future__ import annotations

from meshnode.errors.root import MeshnodeError


class ModelError(MeshnodeError):
    """The model cannot be used."""

    code = "model"
    http_status = 400
    exit_code = 4


class ModelNotFound(ModelError):
    """No such model."""

    code = "model-not-found"
    http_status = 404
    fix = "meshnode ls shows the models on this disk, meshnode search finds others"


class ModelDoesNotFit(ModelError):
    """The model needs more memory than this machine has free."""

    code = "model-does-not-fit"
    http_status = 503


class ModelFileInvalid(ModelError):
    """The model file cannot be read."""

    code = "model-file-invalid"
    fix = "remove it and fetch it again: meshnode rm X, then meshnode pull X"


class ModelInUse(ModelError):
    """The model is being served."""

    code = "model-in-use"
    http_status = 409
    fix = "unload it first: meshnode unload X"
