"""A model for tests with real agents, and what such agents need to run in a test: programs, and no network.

The demo cannot follow an agent's pages of instructions, so its chat template keeps all from it but the last line that
the user said. Nor can it call tools; so it gets pairs of tokens. A mark, which the template puts at the end of the
prompt, makes the model say the token that follows it: a whole call, in the JSON that the engine's parser is to find.
When the result of the tool is there, the template hands the demo the rest of its last line with "count from" in it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from meshnode.models.catalog import DEMO_TARGET
from tests.conftest import NodeProcess
from tools.install_agents import folder, installed

TEMPLATE = """\
{%- set last = namespace(line='', told=false, mark='') -%}
{%- for message in messages -%}
{#- Asked for, so that the engine sees a template that knows system messages. -#}
{%- if message.role == 'system' and not message.content -%}{{- '' -}}{%- endif -%}
{%- set said = namespace(text='') -%}
{%- if message.content is string -%}{%- set said.text = message.content -%}
{%- elif message.content -%}
{%- for part in message.content -%}
{%- if part.type == 'text' -%}{%- set said.text = part.text -%}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- if message.role == 'user' -%}
{%- set last.line = said.text.strip().split('\\n')[-1].replace('"', '') -%}
{%- set last.told = false -%}
{%- elif message.role == 'tool' -%}
{%- set rest = said.text.split('count from') -%}
{%- if rest | length > 1 -%}{%- set last.line = 'count from' + rest[-1].split('\\n')[0] -%}{%- endif -%}
{%- set last.told = true -%}
{%- endif -%}
{%- for call in message.tool_calls or [] -%}
{{- '{"name": "' + call.function.name + '", "arguments": ' + (call.function.arguments | tojson) + '}' -}}
{%- endfor -%}
{%- endfor -%}
{%- for tool in tools or [] -%}
@MARKS@
{%- endfor -%}
{{- '<|im_start|>user\\n' + last.line + '<|im_end|>\\n' -}}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- if last.line.startswith('do what') and not last.told -%}{{- last.mark -}}{%- endif -%}
{%- endif -%}
"""
MARK_IF = """\
{%- if tool.function.name == '@TOOL@' and '@ARGUMENT@' in tool.function.parameters.properties -%}
{%- set last.mark = '<|@ARGUMENT@|>' -%}
{%- endif -%}"""
CONTEXT = 65536
CONTROL, USER_DEFINED = 3, 4
"""Types of tokens in GGUF: one that is never text, and one that is as it stands."""
LOUD = 1e4
"""The length of an embedding beside which the layers' own words do not count."""
CLEAR = 4.0
REPLACED = {"tokenizer.chat_template", "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"}
REPLACED |= {"general.architecture", "general.name", "llama.context_length", "llama.vocab_size"}


def agent_model(target: Path, file: Path) -> Path:
    """Write a model that answers "do what ... says" by reading `file` with the tool it is offered, and then does that.

    The tools are those of pi, opencode, Claude Code and Codex.
    """
    calls: dict[str, tuple[str, dict[str, str]]] = {
        "path": ("read", {"path": str(file)}),
        "filePath": ("read", {"filePath": str(file)}),
        "file_path": ("Read", {"file_path": str(file)}),
        "cmd": ("exec_command", {"cmd": f"cat {file}"}),
    }
    reader = gguf.GGUFReader(DEMO_TARGET)
    writer = gguf.GGUFWriter(target, "llama")
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name not in REPLACED:
            inner = field.types[-1] if field.types[0] is gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], inner)
    tokens = list(reader.fields["tokenizer.ggml.tokens"].contents())
    types = list(reader.fields["tokenizer.ggml.token_type"].contents())
    for argument, (name, arguments) in calls.items():
        tokens += [f"<|{argument}|>", json.dumps({"name": name, "arguments": arguments})]
        types += [CONTROL, USER_DEFINED]
    marks = [MARK_IF.replace("@TOOL@", name).replace("@ARGUMENT@", key) for key, (name, _) in calls.items()]
    writer.add_array("tokenizer.ggml.tokens", tokens)
    writer.add_array("tokenizer.ggml.token_type", types)
    writer.add_uint32("llama.vocab_size", len(tokens))
    writer.add_uint32("llama.context_length", CONTEXT)
    writer.add_string("tokenizer.chat_template", TEMPLATE.replace("@MARKS@", "\n".join(marks)))
    writer.add_string("general.name", "agent model")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    end = reader.fields["tokenizer.ggml.eos_token_id"].contents()
    for name, values in _with_pairs(tensors, len(calls), end).items():
        writer.add_tensor(name, values.astype(np.float32))
        del tensors[name]
    for tensor in tensors.values():
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def _with_pairs(tensors: dict[str, Any], pairs: int, end: int) -> dict[str, np.ndarray[Any, Any]]:
    """The embeddings and the output rows, with two tokens more for each pair: the first says the second, that the end.

    What a token says is read off the direction in which its embedding points. For a mark that is one in which the rows
    of all known tokens have next to nothing: their last singular vectors.
    """
    known = {
        name: gguf.dequantize(tensors[name].data, tensors[name].tensor_type).astype(np.float64)
        for name in ("token_embd.weight", "output.weight", "output_norm.weight")
    }
    gain = known["output_norm.weight"].reshape(-1)
    rows = known["output.weight"] * gain
    quiet = np.linalg.svd(rows)[2][::-1]
    ending = np.linalg.pinv(rows)[:, end]
    ending /= np.linalg.norm(ending)
    assert int((rows @ ending).argmax()) == end
    embeddings, outputs = [known["token_embd.weight"]], [known["output.weight"]]
    for direction in quiet[:pairs]:
        embeddings.append(LOUD * np.stack([direction, ending]))
        outputs.append(np.stack([np.zeros_like(direction), CLEAR * direction / gain]))
    return {"token_embd.weight": np.concatenate(embeddings), "output.weight": np.concatenate(outputs)}


def need(package: str) -> Path:
    """The folder with a package that tools/install_agents.py installs; skips without it, but not where CI=true."""
    if installed(package) and shutil.which("node"):
        return folder()
    reason = f"{package} is not installed: python tools/install_agents.py"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def environment_of(node: NodeProcess, home: Path, programs: Path) -> dict[str, str]:
    """For an agent and for `meshnode`: a home of its own, this node, and no way out but to this machine."""
    home.mkdir(parents=True, exist_ok=True)
    kept = {name: os.environ[name] for name in ("LANG", "TMPDIR") if name in os.environ}
    nowhere = "http://127.0.0.1:9"
    return {
        **kept,
        **{name: value for name, value in node.environment.items() if name.startswith("MESHNODE_")},
        "PATH": f"{programs / 'node_modules' / '.bin'}:{os.environ['PATH']}",
        "HOME": str(home),
        "HTTP_PROXY": nowhere,
        "HTTPS_PROXY": nowhere,
        "NO_PROXY": "localhost,127.0.0.1",
        "npm_config_registry": nowhere,
        "PI_OFFLINE": "1",
        "OPENCODE_DISABLE_AUTOUPDATE": "1",
        "OPENCODE_DISABLE_MODELS_FETCH": "1",
        "OPENCODE_DISABLE_LSP_DOWNLOAD": "1",
    }


def run(command: list[str], environment: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, with nothing on stdin."""
    return subprocess.run(
        command, env=environment, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=90
    )
