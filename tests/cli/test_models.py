"""Models by name: what is here, what a name means, fetching from a hub on loopback, removing."""

from __future__ import annotations

import io
import json
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from latentgen.checkpoints.compvis_names import text_names, unet_names, vae_names
from latentgen.checkpoints.hub import HubName, fetch, plan_pull
from latentgen.checkpoints.single_layout import CLIP_PREFIX, UNET_PREFIX, VAE_PREFIX, written_metadata
from latentgen.cli.model_names import installed_models, models_folder, own_models, resolve_model
from tests.cli.conftest import Cli, snapshot
from tests.fake_hub import FakeHub, fake_hub
from tests.tiny import TINY_MODEL

PULL = ("models", "pull", "owner/tiny")


def save_single_file(path: Path, *, lacks: str | None = None) -> Path:
    """A file with the tiny model's names in CompVis' spelling, as far as a header tells: every tensor is one number."""
    names = [UNET_PREFIX + theirs for theirs in unet_names(TINY_MODEL.unet).values()]
    names += [VAE_PREFIX + theirs for theirs in vae_names(TINY_MODEL.vae).values()]
    names += [CLIP_PREFIX + name for name in text_names(TINY_MODEL.text_encoder)]
    tensors = {name: torch.zeros(1) for name in names if name != lacks}
    save_file(tensors, path, metadata=written_metadata(TINY_MODEL, "tiny"))
    return path


@pytest.fixture(autouse=True)
def _empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


@pytest.fixture
def hub(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[FakeHub]:
    """A hub that has the tiny model as owner/tiny."""
    with fake_hub(tmp_path / "home", monkeypatch) as hub:
        hub.add("owner/tiny", tiny_model)
        yield hub


def put(tiny_model: Path, name: str) -> Path:
    """The tiny model in latentgen's own models folder."""
    return shutil.copytree(tiny_model, models_folder() / name)


# What is here


def test_every_model_is_listed(cli: Cli, hub: FakeHub, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentgen.cli.model_names.embedded_model_path", lambda: tiny_model)
    put(tiny_model, "mine")
    save_single_file(models_folder() / "single.safetensors")
    fetch(plan_pull(HubName("owner/tiny")), lambda count, path: None)
    outcome = cli("models", "list")
    assert (outcome.code, outcome.err) == (0, "")
    assert [line.split()[:2] for line in outcome.out.splitlines()] == [
        *(["embedded", "latentgen"], ["mine", "latentgen"], ["single", "latentgen"], ["owner/tiny", "latentgen"]),
    ]
    rows = [json.loads(line) for line in cli("models", "list", "--json").out.splitlines()]
    size = sum(path.stat().st_size for path in tiny_model.rglob("*") if path.is_file())
    assert [(row["name"], row["home"], row["problem"]) for row in rows] == [
        ("embedded", "package", None),
        ("mine", "models folder", None),
        ("single", "models folder", None),
        ("owner/tiny", "hub cache", None),
    ]
    assert [row["bytes"] for row in rows if row["name"] in ("embedded", "mine")] == [size, size]
    assert 0 < rows[3]["bytes"] <= size
    assert list(installed_models()) == [row["name"] for row in rows]
    assert all(resolve_model(row["name"]) == Path(row["path"]) for row in rows)


def test_what_cannot_be_used_says_why(cli: Cli, hub: FakeHub, tiny_model: Path) -> None:
    plan = plan_pull(HubName("owner/tiny"))
    shutil.rmtree(fetch(plan, lambda count, path: None) / "vae")
    (put(tiny_model, "torn") / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"torn")
    save_file({"lora_unet_a.lora_down.weight": torch.zeros(4, 8)}, models_folder() / "lora.safetensors")
    save_single_file(models_folder() / "less.safetensors", lacks=f"{UNET_PREFIX}time_embed.0.bias")
    eighths = put(tiny_model, "eighths") / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: each.to(torch.float8_e4m3fn) for name, each in load_file(eighths).items()}, eighths)
    more = put(tiny_model, "more") / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({**load_file(more), "extra": torch.zeros(1)}, more)
    outcome = cli("models", "list")
    assert outcome.code == 0
    problems = {line.split(":")[0]: line for line in outcome.out.splitlines() if line.startswith("! ")}
    assert "is not a whole safetensors file" in problems["! torn"]
    assert "it is a LoRA, not a whole model" in problems["! lora"]
    assert f"1 tensors are missing, for instance {UNET_PREFIX}time_embed.0.bias" in problems["! less"]
    assert "its weights are F8_E4M3, which latentgen does not read" in problems["! eighths"]
    assert "1 tensors are unknown, for instance unet/extra" in problems["! more"]
    assert "vae" in problems["! owner/tiny"]
    assert set(installed_models()) <= {"embedded"}


def test_other_peoples_models_in_the_cache_are_left_out(cli: Cli, hub: FakeHub, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    save_file({"h.0.attn.weight": torch.zeros(2)}, other / "model.safetensors")
    (other / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    hub.add("owner/other", other)
    fetch(plan_pull(HubName("owner/other", None, "model.safetensors")), lambda count, path: None)
    assert "owner/other" not in cli("models", "list").out


def test_a_name_draws_nothing_on_the_terminal(cli: Cli, tiny_model: Path) -> None:
    put(tiny_model, "a\x1b[2Jb")
    assert "a\\x1b[2Jb" in cli("models", "list").out
    assert "\x1b" not in cli("models", "list").out


@pytest.mark.parametrize(("pipeline", "family"), [("StableDiffusionXLPipeline", "SDXL"), ("FluxPipeline", "Flux")])
def test_another_models_folder_is_named(pipeline: str, family: str, cli: Cli) -> None:
    Path("other").mkdir()
    Path("other/model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    summary = json.loads(cli("info", "other", "--json").out)
    assert (summary["architecture"], "latentgen does not run" in summary["note"]) == (family, True)
    refused = cli("generate", "a cat", "-m", "other")
    assert (refused.code, refused.err.count("\n")) == (3, 1)
    assert f"the model is a '{pipeline}'" in refused.err


def test_a_user_without_a_home_has_the_embedded_model(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
    assert list(own_models()) == ["embedded"]


def test_a_model_is_inspected(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    folder = json.loads(cli("models", "inspect", tiny_model, "--json").out)
    assert (folder["architecture"], folder["prediction type"]) == ("latentgen", "epsilon")
    assert (folder["missing tensors"], folder["unexpected tensors"]) == ([], [])
    shown = json.loads(cli("models", "show", tiny_model, "--json").out)
    assert shown.items() <= folder.items()
    path = save_single_file(tmp_path / "less.safetensors", lacks=f"{UNET_PREFIX}time_embed.0.bias")
    file = json.loads(cli("models", "inspect", path, "--json").out)
    assert file["missing tensors"] == [f"{UNET_PREFIX}time_embed.0.bias"]
    assert file["metadata"]["modelspec.title"] == "tiny"
    assert file["part first_stage_model"]["parameters"] == len(vae_names(TINY_MODEL.vae))
    assert "missing tensors" in cli("models", "inspect", path).out


# What a name means


def test_a_folder_and_a_file_are_models(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(tiny_model, tmp_path / "model")
    file = save_single_file(tmp_path / "any name at all")
    assert resolve_model("model/") == Path("model")
    assert resolve_model("~/model") == tmp_path / "model"
    assert resolve_model(str(file)) == file


def test_a_pulled_model_is_found_without_a_network(
    cli: Cli, hub: FakeHub, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("owner/tiny", tiny_model, revision="v2", commit="b" * 40)
    assert cli(*PULL, "--revision", "v2").out == "owner/tiny@v2\n"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub.requests.clear()
    outcome = cli("generate", "a cat", "-m", "owner/tiny@v2", "-s", "1", "--dry-run")
    assert outcome.code == 0, outcome.err
    missing = cli("generate", "a cat", "-m", "owner/tiny")
    assert missing.code == 3
    assert "not here; of it there is owner/tiny@v2 (to fetch it: latentgen models pull owner/tiny)" in missing.err
    assert hub.requests == []


def test_one_file_of_a_pulled_model(hub: FakeHub, tmp_path: Path) -> None:
    other = tmp_path / "files"
    other.mkdir()
    for name in ("a.safetensors", "b.safetensors"):
        save_single_file(other / name)
    hub.add("owner/files", other)
    for name in ("a.safetensors", "b.safetensors"):
        path = fetch(plan_pull(HubName("owner/files", None, name)), lambda count, path: None)
        assert resolve_model(f"owner/files:{name}") == path
        if name == "a.safetensors":
            assert resolve_model("owner/files") == path
    assert [name for name in installed_models() if name != "embedded"] == [
        "owner/files:a.safetensors",
        "owner/files:b.safetensors",
    ]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("none", "there is no model folder none (see: latentgen models list)"),
        ("embeded", "there is no model folder embeded (did you mean embedded?)"),
        ("../none", "there is no model folder ../none"),
        ("no/file.safetensors", "there is no model folder no/file.safetensors (see"),
        ("here/mistyped", "there is no model folder here/mistyped (see"),
        ("a/b/../c", "there is no model folder a/b/../c (see"),
        ("o/n", "the hub's model of that name is not here (to fetch it: latentgen models pull o/n)"),
        ("o/n@v1", "to fetch it: latentgen models pull o/n@v1"),
        ("x" * 5000, "File name too long"),
        ("old.ckpt", "is a file; a model is a folder or a .safetensors file, and pickles are never opened here"),
        ("old.ckpt", "latentgen convert old.ckpt"),
        ("my old.ckpt", "latentgen convert 'my old.ckpt' 'my old.safetensors'"),
    ],
)
def test_what_is_no_model(
    name: str, line: str, cli: Cli, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is asked of the hub, though it could be reached."""
    monkeypatch.setattr("latentgen.cli.model_names.embedded_model_path", lambda: tmp_path)
    (tmp_path / "here").mkdir()
    for pickle in ("old.ckpt", "my old.ckpt"):
        (tmp_path / pickle).write_bytes(b"PK")
    outcome = cli("models", "show", name)
    assert (outcome.code, outcome.err.count("\n")) == (3, 1)
    assert line in outcome.err
    assert hub.requests == []


# Pulling


def test_a_pull_says_what_comes_and_what_to_do_with_it(cli: Cli, hub: FakeHub) -> None:
    outcome = cli(*PULL)
    assert (outcome.code, outcome.out) == (0, "owner/tiny\n")
    first, second = outcome.err.splitlines()
    assert first.startswith("owner/tiny: 12 file(s), 1 MB, 1 MB to come, into ")
    assert second == 'to draw with it: latentgen generate "a lighthouse at sunset" --model owner/tiny'
    hub.requests.clear()
    again = cli(*PULL, "--json")
    event = json.loads(again.out)
    assert (event["model"], event["commit"], event["fetched_bytes"]) == ("owner/tiny", "a" * 40, 0)
    assert "all here" in again.err
    assert hub.fetched() == []


@pytest.mark.parametrize(
    ("tensors", "line"),
    [
        ({"lora_unet_x_attn2_to_k.lora_down.weight": torch.zeros(4, 768)}, "is an SD 1.x LoRA; to draw with it: "),
        ({"lora_te2_x.lora_down.weight": torch.zeros(4, 768)}, "is an SDXL LoRA; latentgen draws with SD 1.x"),
        ({"emb_params": torch.zeros(2, 768)}, "--embedding "),
        ({"decoder.conv_in.weight": torch.zeros(8, 4, 3, 3)}, "--vae "),
        ({"x.y": torch.zeros(2)}, "see: latentgen info "),
    ],
)
def test_a_file_says_what_it_is_for(
    tensors: dict[str, torch.Tensor], line: str, cli: Cli, hub: FakeHub, tmp_path: Path
) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    save_file(tensors, folder / "w.safetensors")
    hub.add("owner/files", folder)
    outcome = cli("models", "pull", "owner/files", "--file", "w.safetensors")
    assert (outcome.code, outcome.out) == (0, "owner/files:w.safetensors\n")
    assert line in outcome.err


def test_a_pinned_file(cli: Cli, hub: FakeHub, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    file = save_single_file(folder / "w.safetensors")
    hub.add("owner/files", folder)
    pull = ("models", "pull", "owner/files:w.safetensors", "--sha256")
    outcome = cli(*pull, "0" * 64)
    assert outcome.code == 3
    assert "is not what --sha256 says" in outcome.err
    assert hub.fetched() == []
    assert cli(*pull, snapshot(folder)[file.name].upper()).code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (("owner/tiny", "--offline"), 2, "owner/tiny cannot be pulled with --offline"),
        (("tiny",), 2, "tiny is no name of the hub (OWNER/NAME, for instance"),
        (("../tiny",), 2, "../tiny is no name of the hub"),
        (("https://example.org/a/b",), 2, "is no name of the hub"),
        (("owner/tiny", "--revision", "../x"), 2, "--revision ../x cannot be a name on the hub"),
        (("owner/tiny", "--file", "/etc/passwd"), 2, "--file /etc/passwd cannot be a name on the hub"),
        (("owner/tiny@a", "--revision", "b"), 2, "names already what --revision"),
        (("owner/tiny", "--variant", "int8"), 2, "--variant int8 is not known (fp16"),
        (("owner/tiny", "--variant", "fp16", "--file", "a.safetensors"), 2, "--variant is for a whole model"),
        (("owner/tiny", "--sha256", "0" * 64), 2, "--sha256 is for one file"),
        (("owner/tiny", "--sha256", "abc", "--file", "a.safetensors"), 2, "--sha256 abc is no SHA-256"),
        (("owner/tiny", "--file", "model.ckpt"), 2, "is no safetensors file: nothing else is pulled"),
        (("owner/none",), 3, "the hub has no owner/none, or it is private"),
        (("owner/tiny", "--revision", "v9"), 3, "owner/tiny has no revision v9"),
    ],
)
def test_a_pull_that_is_refused(arguments: tuple[str, ...], code: int, line: str, cli: Cli, hub: FakeHub) -> None:
    outcome = cli("models", "pull", *arguments)
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (code, "", 1)
    assert line in outcome.err
    assert hub.fetched() == []


def run_python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter without the tests' own settings of huggingface_hub."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_pull_in_a_process_of_its_own(hub: FakeHub, tmp_path: Path) -> None:
    """With a token, which nobody but the hub sees; and the hub learns nothing of this machine but Python's version."""
    hub.repositories["owner/tiny"].token = "hf_canary"
    code = "import sys; from latentgen.cli.app import main; sys.exit(main(sys.argv[1:]))"
    done = run_python(code, *PULL, HF_ENDPOINT=hub.endpoint, HF_HOME=str(tmp_path / "other"), HF_TOKEN="hf_canary")
    assert (done.returncode, done.stdout) == (0, "owner/tiny\n"), done.stderr
    assert "hf_canary" not in done.stderr
    agents = {headers["user-agent"] for _, path, headers in hub.requests if not path.startswith("/blob/")}
    assert all(agent.startswith("latentgen/") and "torch" not in agent for agent in agents), agents
    assert {path.split("/")[1] for _, path, _ in hub.requests} == {"api", "owner", "blob"}
    offline = run_python(code, *PULL, HF_ENDPOINT=hub.endpoint, HF_HOME=str(tmp_path / "other"), HF_HUB_OFFLINE="1")
    assert (offline.returncode, offline.stdout) == (2, "")
    assert offline.stderr == "error: owner/tiny cannot be pulled: HF_HUB_OFFLINE is set (unset HF_HUB_OFFLINE)\n"


def test_nothing_but_a_pull_opens_a_socket(cli: Cli, hub: FakeHub, tiny_model: Path) -> None:
    """Seen by the interpreter itself, in a process that may go online; nor is torch or the hub's library imported."""
    assert cli(*PULL).code == 0
    weights = tiny_model / "unet" / "diffusion_pytorch_model.safetensors"
    code = """
import sys
opened = []
def watch(event, arguments):
    if event in ("socket.__new__", "socket.connect", "socket.getaddrinfo", "subprocess.Popen"):
        opened.append((event, arguments))
sys.addaudithook(watch)
from latentgen.cli.app import main
for line in sys.argv[1:]:
    code = main(line.split("|"))
    assert code == (3 if "nobody" in line else 0), (line, code)
assert not opened, opened
heavy = [name for name in ("torch", "huggingface_hub", "transformers") if name in sys.modules]
assert not heavy, heavy
"""
    lines = [
        *("models|list", "models|show|owner/tiny", "models|inspect|owner/tiny", f"info|{weights}"),
        *("generate|a cat|-m|owner/tiny|--dry-run", "generate|a cat|-m|nobody/nothing|--dry-run"),
    ]
    done = run_python(code, *lines, HF_ENDPOINT=hub.endpoint, HF_HOME=os.environ["HF_HOME"])
    assert done.returncode == 0, done.stderr


# Removing


def test_a_pulled_model_is_removed_with_what_it_frees(cli: Cli, hub: FakeHub, tiny_model: Path) -> None:
    hub.add("owner/other", tiny_model)
    for name in ("owner/tiny", "owner/other"):
        assert cli("models", "pull", name).code == 0
    outcome = cli("models", "remove", "owner/tiny", "--yes")
    assert (outcome.code, outcome.out) == (0, "")
    assert outcome.err == ("owner/tiny: 1 revision(s) in the Hugging Face cache, 1 MB are freed.\nremoved owner/tiny\n")
    assert [name for name in installed_models() if name != "embedded"] == ["owner/other"]
    assert cli("models", "remove", "owner/tiny", "--yes").code == 3


def test_a_model_of_ones_own_is_removed(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    put(tiny_model, "mine")
    save_single_file(models_folder() / "single.safetensors")
    elsewhere = shutil.copytree(tiny_model, tmp_path / "elsewhere")
    before = snapshot(elsewhere)
    (models_folder() / "link").symlink_to(elsewhere)
    for name in ("mine", "single", "link"):
        assert cli("models", "remove", name, "--yes").code == 0
    assert list(models_folder().iterdir()) == []
    assert snapshot(elsewhere) == before


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("YES\n", 0), ("n\n", 1), ("\n", 1), ("", 1)])
def test_removing_is_asked_about(
    answer: str, code: int, cli: Cli, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = put(tiny_model, "mine")
    monkeypatch.setattr("sys.stdin", Terminal(answer))
    outcome = cli("models", "remove", "mine")
    assert outcome.code == code
    assert "mine in " in outcome.err
    assert "takes 1 MB.\nRemove it? [y/N] " in outcome.err
    assert folder.exists() is (code != 0)


def test_nothing_is_removed_where_nobody_can_be_asked(
    cli: Cli, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tiny_model, "mine")
    monkeypatch.setattr("sys.stdin", None)  # as Python has it after `<&-`
    outcome = cli("models", "remove", "mine")
    assert outcome.code == 2
    assert "nothing was removed: there is no terminal to ask on" in outcome.err


@pytest.mark.parametrize(
    ("name", "code", "line"),
    [
        ("embedded", 2, "is a part of latentgen and is not removed"),
        ("mine", 2, "nothing was removed: there is no terminal to ask on (--yes removes without asking)"),
        ("folder", 2, "folder is a path, and latentgen removes only what it keeps"),
        ("../models/mine", 3, "there is no model ../models/mine here"),
        ("owner/none", 3, "there is no model owner/none here (see: latentgen models list)"),
        ("owner/tiny:a.safetensors", 2, "is one file of a model (remove it as a whole: owner/tiny)"),
    ],
)
def test_what_is_not_removed(
    name: str, code: int, line: str, cli: Cli, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latentgen.cli.model_names.embedded_model_path", lambda: tiny_model)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    put(tiny_model, "mine")
    shutil.copytree(tiny_model, tmp_path / "folder")
    before = snapshot(tmp_path)
    outcome = cli("models", "remove", name)
    assert outcome.code == code
    assert line in outcome.err
    assert snapshot(tmp_path) == before


# doctor


def test_doctor_names_the_places_of_models(
    cli: Cli, hub: FakeHub, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def findings() -> dict[str, str]:
        return {row["name"]: row["value"] for row in map(json.loads, cli("doctor", "--json").out.splitlines())}

    found = findings()
    assert found["models folder"] == f"{models_folder()} (not there yet)"
    assert found["network"].startswith("only where it is asked for")
    put(tiny_model, "mine")
    assert cli(*PULL).code == 0
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = findings()
    assert found["models folder"].startswith(f"{models_folder()}, 1 model(s), ")
    assert "hub, 1 snapshot(s), " in found["hub cache"]
    assert found["network"] == "never: HF_HUB_OFFLINE is set"
