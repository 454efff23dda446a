"""What all errors have in common."""

from __future__ import annotations

import inspect


class MeshnodeError(Exception):
    """Something went wrong."""

    code = "error"
    http_status = 500
    exit_code = 1
    fix = ""

    def __init__(self, detail: str = "", *, fix: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retry_after_s = retry_after_s
        if fix:
            self.fix = fix

    @property
    def summary(self) -> str:
        """The user's sentence: the first paragraph of the class docstring on one line, without its full stop."""
        paragraph = (inspect.cleandoc(type(self).__doc__ or "")).split("\n\n")[0]
        return " ".join(paragraph.split()).rstrip(".")

    @property
    def message(self) -> str:
        """Summary and particulars as one line."""
        return f"{self.summary}: {self.detail}" if self.detail else self.summary

    def __str__(self) -> str:
        return self.message

    def as_dict(self) -> dict[str, str]:
        """The form used under `error` in `--json` output and in `/api/*` bodies."""
        return {"code": self.code, "message": self.message, "fix": self.fix}
