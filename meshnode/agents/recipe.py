"""What a program needs to use a node, as data: for the command line, for the console, for `meshnode launch`.

A key that a node asks for never stands in a recipe: the text says $MESHNODE_API_KEY, or names that variable in the way
the program reads variables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

KEY_VARIABLE = "MESHNODE_API_KEY"
KEY_REFERENCE = f"${KEY_VARIABLE}"
NO_KEY = "meshnode"
"""What stands for a key where a program insists on one and the node asks for none."""

Format = Literal["json", "toml", "yaml", "text"]


@dataclass(frozen=True, slots=True)
class AgentModel:
    """A model that a program can be told of. `context_length` in tokens, 0 when it is not known."""

    id: str
    context_length: int = 0
    capabilities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RecipeFile:
    """A piece of a file of the program. `path` begins with ~/ for a file of the user; "" is an example for a new file.

    `content` is only what belongs to the node: in json and toml it is merged into what the file has.
    """

    path: str
    format: Format
    content: str


@dataclass(frozen=True, slots=True)
class Launch:
    """How to run a program for the length of one call.

    `arguments` come before those of the user. `scratch` are private files of that call: {name: content}; an argument
    "{name}" becomes the path of such a file. Values of `environment` may be $MESHNODE_API_KEY.
    """

    binary: str
    environment: Mapping[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    without_arguments: tuple[str, ...] = ()
    scratch: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Recipe:
    """All of that for one program.

    `environment` and `command` are for a shell and need no file, unless `files` has some and `environment` is empty.
    """

    id: str
    title: str
    summary: str
    homepage: str
    model: str
    environment: dict[str, str] = field(default_factory=dict)
    command: tuple[str, ...] = ()
    files: tuple[RecipeFile, ...] = ()
    notes: tuple[str, ...] = ()
    install: str = ""
    launch: Launch | None = None

    @property
    def launchable(self) -> bool:
        """Whether `meshnode launch` can run it."""
        return self.launch is not None

    @property
    def writable(self) -> bool:
        """Whether `meshnode config --write` has a file to change."""
        return any(file.path for file in self.files)

    def as_dict(self) -> dict[str, Any]:
        """The JSON form: every field but `launch`, of which only its being there is told."""
        facts = asdict(self)
        del facts["launch"]
        return {**facts, "launchable": self.launchable, "writable": self.writable}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a node answers and what it serves: what every recipe is made of. `base_url` has no /v1."""

    base_url: str
    model: AgentModel
    models: Sequence[AgentModel]
    needs_key: bool

    @property
    def v1(self) -> str:
        """The base URL that OpenAI clients want."""
        return f"{self.base_url}/v1"

    @property
    def key(self) -> str:
        """The key as a shell would write it."""
        return KEY_REFERENCE if self.needs_key else NO_KEY

    @property
    def chat_models(self) -> list[AgentModel]:
        """Those that answer a conversation; the chosen one is always among them, and first."""
        others = [model for model in self.models if "chat" in model.capabilities and model.id != self.model.id]
        return [self.model, *others]
