"""Compiles the contracts of protocol/contracts and of tests/contracts, and writes what the node and the tests read.

    python -m tools.build_contracts             writes the artifacts
    python -m tools.build_contracts --check     exit status 1 if the sources give other ones than those in the checkout

Needs tools/install_evm.py to have run. Artifacts (abi, bytecode, compiler, settings, the hash of the source) lie beside
the sources in `artifacts`; the ABIs that a node needs go into meshnode/settlement/abi. The compiler is pinned and no
metadata is appended, so the same source gives the same bytes anywhere.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tools import install_evm

ROOT = Path(__file__).parent.parent
SOURCES = {
    "protocol/contracts/PaymentChannels.sol": ("PaymentChannels", "DepositCollector"),
    "protocol/contracts/TestUSDC.sol": ("TestUSDC",),
    "tests/contracts/Doubles.sol": ("ReentrantToken", "HostileCollector", "SignatureWallet", "Delegate", "Aggregate"),
}
"""The contracts that are written out, by source."""
NODE_ABIS = {"PaymentChannels": "hub", "DepositCollector": "collector", "TestUSDC": "token"}
"""Which ABIs a node reads, and under which name."""
TEST_ONLY = {"mint", "pause", "unpause", "blacklist", "unBlacklist"}
"""What the token of the tests has and no real one lets a node call."""
SETTINGS: dict[str, Any] = {
    "evmVersion": "cancun",
    "optimizer": {"enabled": True, "runs": 20_000},
    "viaIR": True,
    "metadata": {"appendCBOR": False, "bytecodeHash": "none"},
    "outputSelection": {"*": {"*": ["abi", "evm.bytecode.object", "evm.deployedBytecode"]}},
}
COMPILE = """
const solc = require(process.argv[1]);
const asked = JSON.parse(require("fs").readFileSync(0, "utf8"));
const answers = asked.map((input) => JSON.parse(solc.compile(JSON.stringify(input))));
process.stdout.write(JSON.stringify({version: solc.version(), answers}));
"""
LIMIT_S = 120


def compiled(package: Path) -> dict[Path, str]:
    """Every file that comes of the sources: path within the checkout -> text. Each source is compiled for itself, so
    that none changes what another gives. Raises SystemExit with the compiler's words where one does not compile,
    warnings included.
    """
    texts = {source: (ROOT / source).read_text("utf-8") for source in SOURCES}
    asked = [
        {"language": "Solidity", "sources": {source: {"content": text}}, "settings": SETTINGS}
        for source, text in texts.items()
    ]
    command = ["node", "-e", COMPILE, str(package)]
    done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, timeout=LIMIT_S)
    if done.returncode != 0:
        raise SystemExit(done.stderr)
    made = json.loads(done.stdout)
    files: dict[Path, str] = {}
    for (source, text), answer in zip(texts.items(), made["answers"], strict=True):
        if complaints := answer.get("errors"):
            raise SystemExit("\n".join(complaint["formattedMessage"] for complaint in complaints))
        for name in SOURCES[source]:
            contract = answer["contracts"][source][name]
            deployed = contract["evm"]["deployedBytecode"]
            artifact = {
                "contract": name,
                "source": source,
                "sourceSha256": hashlib.sha256(text.encode()).hexdigest(),
                "compiler": made["version"],
                "settings": {key: value for key, value in SETTINGS.items() if key != "outputSelection"},
                "abi": contract["abi"],
                "bytecode": "0x" + contract["evm"]["bytecode"]["object"],
                "deployedBytecode": "0x" + deployed["object"],
                "immutableReferences": deployed.get("immutableReferences", {}),
            }
            files[Path(source).parent / "artifacts" / f"{name}.json"] = _text(artifact)
            if name in NODE_ABIS:
                abi = [entry for entry in contract["abi"] if entry.get("name") not in TEST_ONLY]
                files[Path("meshnode/settlement/abi") / f"{NODE_ABIS[name]}.json"] = _text(abi)
    return files


def _text(value: object) -> str:
    return json.dumps(value, indent=1) + "\n"


def differing(files: dict[Path, str]) -> list[Path]:
    """Which of these files are not in the checkout as they should be."""
    return [path for path, text in files.items() if not _same(ROOT / path, text)]


def _same(path: Path, text: str) -> bool:
    return path.exists() and path.read_text("utf-8") == text


def main(arguments: list[str]) -> int:
    """Write, or with --check compare."""
    package = install_evm.compiler()
    if package is None:
        print("no compiler: run python tools/install_evm.py first (it needs npm)", file=sys.stderr)
        return 1
    files = compiled(package)
    changed = differing(files)
    for path in changed:
        print(path)
        if "--check" not in arguments:
            (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
            (ROOT / path).write_text(files[path], "utf-8")
    return 1 if changed and "--check" in arguments else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
