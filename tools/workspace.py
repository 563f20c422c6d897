"""What the workspace holds: its libraries and apps, as their ``pyproject.toml`` files say.

Read by ``noxfile.py`` (which environments to make) and ``tools/tidy.py`` (which rules to check).
Standard library only.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MEMBER_FOLDERS = ("libs", "apps")


@dataclass(frozen=True, slots=True)
class Member:
    """One library or app.

    ``dependencies`` are requirement strings as written; ``extras`` are names of optional
    dependency sets.
    """

    key: str  # the folder's name, which is how people and nox call it: core-ids
    folder: Path
    distribution: str
    package: str
    version: str
    dependencies: tuple[str, ...]
    extras: tuple[str, ...]

    @property
    def source(self) -> Path:
        """The package's folder."""
        return self.folder / "src" / self.package

    @property
    def tests(self) -> Path:
        """The folder of the library's own tests."""
        return self.folder / "tests"


def read_members(root: Path = ROOT) -> dict[str, Member]:
    """All members by key, libraries first, each group in alphabetical order.

    A folder without a ``pyproject.toml`` is no member. Raises ``KeyError`` or
    ``tomllib.TOMLDecodeError`` for one whose file is incomplete.
    """
    members = {}
    for group in MEMBER_FOLDERS:
        for file in sorted((root / group).glob("*/pyproject.toml")):
            content = tomllib.loads(file.read_text("utf-8"))
            project = content["project"]
            backend = content.get("tool", {}).get("uv", {}).get("build-backend", {})
            members[file.parent.name] = Member(
                key=file.parent.name,
                folder=file.parent,
                distribution=project["name"],
                package=backend.get("module-name", project["name"].replace("-", "_")),
                version=project["version"],
                dependencies=tuple(project.get("dependencies", ())),
                extras=tuple(project.get("optional-dependencies", {})),
            )
    return members


def requirement_name(requirement: str) -> str:
    """The normalised distribution name at the start of a requirement string."""
    match = re.match(r"[A-Za-z0-9._-]+", requirement.strip())
    if match is None:
        raise ValueError(f"{requirement!r} names no distribution.")
    return re.sub(r"[-_.]+", "-", match.group()).lower()


def siblings(member: Member, members: dict[str, Member]) -> list[tuple[str, Member]]:
    """The members that this one requires directly, each with the requirement as written."""
    by_distribution = {other.distribution: other for other in members.values()}
    pairs = [(text, by_distribution.get(requirement_name(text))) for text in member.dependencies]
    return [(text, other) for text, other in pairs if other is not None]


def closure(member: Member, members: dict[str, Member]) -> list[Member]:
    """The member and every sibling that it needs, directly or not; the member comes last."""
    found: dict[str, Member] = {}

    def visit(current: Member) -> None:
        for _, other in siblings(current, members):
            if other.key not in found and other.key != member.key:
                visit(other)
        found[current.key] = current

    visit(member)
    return list(found.values())
