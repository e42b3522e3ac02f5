"""What is wrong with a directory file, and where."""

from typing import NamedTuple

from authz_service.base import errors
from authz_service.engine.limits import DIRECTORY_FINDINGS_MAX


class Finding(NamedTuple):
    """One thing that is wrong.

    Attributes:
        path: ``organizations[2].groups[4].members[0]``, or ``line 12`` for what is no JSON or YAML.
        reason: The reason of the rule that it breaks, as product.md section 7 names it.
        text: For the person who wrote the file.
    """

    path: str
    reason: str
    text: str


class Findings:
    """Collects findings, up to the limit."""

    def __init__(self) -> None:
        self.all: list[Finding] = []

    def add(self, path: str, reason: str, text: str) -> None:
        """Notes a finding; those above the limit are dropped."""
        if len(self.all) < DIRECTORY_FINDINGS_MAX:
            self.all.append(Finding(path, reason, text))

    def refused(self, path: str, refusal: errors.Refusal) -> None:
        """Notes what a rule of a concern refused."""
        self.add(path, refusal.reason, refusal.message)

    def refuse(self) -> None:
        """Refuses the file if anything was found.

        Raises:
            InvalidArgument: DIRECTORY_FILE_INVALID with the findings as fields.
        """
        if self.all:
            first = self.all[0]
            raise errors.InvalidArgument(
                "DIRECTORY_FILE_INVALID",
                f"{first.path}: {first.text}",
                metadata={"findings": len(self.all), "path": first.path, "rule": first.reason},
                fields=[(each.path, f"{each.reason}: {each.text}") for each in self.all],
            )
