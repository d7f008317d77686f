"""Fetching from a hub on loopback, and the Hugging Face cache, held against huggingface_hub itself."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Generator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import constants, hf_hub_download, scan_cache_dir
from safetensors.torch import load_file, save_file

from latentgen.checkpoints.folder import load_model
from latentgen.checkpoints.hub import check_space, fetch, gigabytes, plan_pull
from latentgen.checkpoints.hub_cache import (
    HubName,
    cache_folder,
    cached_name,
    cached_snapshots,
    find_cached,
    offline_variable,
    parse_hub_name,
    plan_removal,
    remove,
    repository_folder,
)
from latentgen.checkpoints.identify import identify
from latentgen.checkpoints.layout import read_config, weight_files
from latentgen.errors import InputError, LatentgenError, ModelLoadError, ModelNotFoundError, RuntimeFailure
from latentgen.models.tokenizer import Tokenizer
from tests.fake_hub import FakeHub, fake_hub
from tests.limits import file_size_limit
from tests.tiny import TINY_MODEL
from tests.tiny_bundle import save_tiny_model

UNET = "unet/diffusion_pytorch_model.safetensors"
HALF = "unet/diffusion_pytorch_model.fp16.safetensors"
TINY = HubName("owner/tiny")


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """The tiny model as people publish one: with pickles, programs and a picture beside what is needed."""
    folder = shutil.copytree(tiny_folder, tmp_path / "published")
    for name in ("unet/diffusion_pytorch_model.bin", "model.ckpt", "setup.py", "README.md", "picture.png"):
        (folder / name).write_bytes(b"not needed")
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker" / "model.safetensors").write_bytes(b"not needed")
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[FakeHub]:
    with fake_hub(tmp_path / "home", monkeypatch) as hub:
        yield hub


class Reports:
    """What a pull reports, added up by file."""

    def __init__(self) -> None:
        self.bytes: dict[str, int] = {}

    def __call__(self, count: int, path: str) -> None:
        self.bytes[path] = self.bytes.get(path, 0) + count


def pull(name: HubName = TINY, *, variant: str | None = None) -> Path:
    return fetch(plan_pull(name, variant=variant), Reports())


# Names


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("owner/name", HubName("owner/name")),
        ("stable-diffusion-v1-5/sd.v1_5", HubName("stable-diffusion-v1-5/sd.v1_5")),
        ("owner/name@fp16", HubName("owner/name", "fp16")),
        ("owner/name@refs/pr/1", HubName("owner/name", "refs/pr/1")),
        ("owner/name:a.safetensors", HubName("owner/name", None, "a.safetensors")),
        ("owner/name@v1:b/a.safetensors", HubName("owner/name", "v1", "b/a.safetensors")),
    ],
)
def test_a_name_is_read_and_written(text: str, expected: HubName) -> None:
    assert parse_hub_name(text) == expected
    assert str(expected) == text


@pytest.mark.parametrize(
    "text",
    [
        *("name", "a/b/c", "/a/b", "./a", "../a", "a/..", "a/b..c", "a--b/c", "a/b@", "a/b@../c", "a/b@-x", "a/b:"),
        *(
            "a/b:../c",
            "a/b:/etc/passwd",
            "a/b:c/../../d",
            "a/b:c//d",
            "a/b:c\\d",
            "a/b\n",
            "a/b:c\x1b[2J",
            "-a/b",
            "ä/b",
        ),
        "a/" + "b" * 97,
    ],
)
def test_what_cannot_be_a_name(text: str) -> None:
    assert parse_hub_name(text) is None


# Fetching


def test_a_pull_takes_what_is_needed_and_no_more(hub: FakeHub, folder: Path) -> None:
    hub.add("owner/tiny", folder)
    plan, reports = plan_pull(TINY), Reports()
    assert plan.bytes_to_come == plan.size
    found = fetch(plan, reports)
    needed = {file.path for file in plan.files}
    assert {path for path, _ in hub.fetched()} == needed
    assert needed == {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and b"not needed" not in path.read_bytes()
    }
    assert all((found / path).read_bytes() == (folder / path).read_bytes() for path in needed)
    assert reports.bytes == {file.path: file.size for file in plan.files}
    assert read_config(found) == TINY_MODEL
    assert find_cached(TINY) == found


def test_a_second_pull_fetches_nothing(hub: FakeHub, folder: Path) -> None:
    hub.add("owner/tiny", folder)
    first = pull()
    hub.requests.clear()
    plan = plan_pull(TINY)
    assert (plan.missing, plan.bytes_to_come) == ((), 0)
    assert fetch(plan, Reports()) == first
    assert hub.fetched() == []


def test_what_is_new_upstream_is_fetched_and_the_rest_is_shared(hub: FakeHub, folder: Path) -> None:
    hub.add("owner/tiny", folder)
    pull()
    (folder / "scheduler" / "scheduler_config.json").write_text(
        (folder / "scheduler" / "scheduler_config.json").read_text() + "\n"
    )
    hub.add("owner/tiny", folder, commit="b" * 40)
    hub.requests.clear()
    assert pull().name == "b" * 40
    assert hub.fetched() == [("scheduler/scheduler_config.json", "")]
    assert [snapshot.folder.name[0] for snapshot in cached_snapshots()] == ["a", "b"]


def test_a_dropped_connection_goes_on_where_it_was(hub: FakeHub, folder: Path) -> None:
    hub.add("owner/tiny", folder)
    hub.drops[UNET] = [10_000, 20_000]
    reports = Reports()
    found = fetch(plan_pull(TINY), reports)
    ranges = [text for path, text in hub.fetched() if path == UNET]
    assert ranges[0] == ""
    starts = [int(text.removeprefix("bytes=").rstrip("-")) for text in ranges[1:]]
    assert len(starts) == 2
    assert 8_000 < starts[0] <= 10_000
    assert starts[0] + 18_000 < starts[1] <= starts[0] + 20_000
    assert (found / UNET).read_bytes() == (folder / UNET).read_bytes()
    assert reports.bytes[UNET] == (folder / UNET).stat().st_size


def test_the_next_pull_goes_on_where_one_was_given_up(hub: FakeHub, folder: Path) -> None:
    """Also in another process: what has arrived lies on the disk."""
    hub.add("owner/tiny", folder)
    hub.drops[UNET] = [50_000, *[0] * 20]
    with pytest.raises(RuntimeFailure, match=r"connection failed.*what has arrived is kept"):
        pull()
    assert plan_pull(TINY).bytes_to_come < plan_pull(TINY).size - 45_000
    hub.drops.clear()
    hub.requests.clear()
    reports = Reports()
    found = fetch(plan_pull(TINY), reports)
    (start,) = [text for path, text in hub.fetched() if path == UNET]
    assert 45_000 < int(start.removeprefix("bytes=").rstrip("-")) <= 50_000
    assert reports.bytes[UNET] == (folder / UNET).stat().st_size
    assert (found / UNET).read_bytes() == (folder / UNET).read_bytes()


def test_a_server_that_cannot_resume_begins_again(hub: FakeHub, folder: Path) -> None:
    hub.add("owner/tiny", folder)
    hub.drops[UNET] = [50_000]
    hub.resumes = False
    reports = Reports()
    found = fetch(plan_pull(TINY), reports)
    assert (found / UNET).read_bytes() == (folder / UNET).read_bytes()
    assert reports.bytes[UNET] == (folder / UNET).stat().st_size


def test_a_file_that_arrives_damaged_is_thrown_away(hub: FakeHub, folder: Path) -> None:
    hub.add("owner/tiny", folder)
    hub.spoiled.add(UNET)
    with pytest.raises(ModelLoadError, match=f"{UNET} arrived damaged.*pull it again"):
        pull()
    sha256 = hashlib.sha256((folder / UNET).read_bytes()).hexdigest()
    assert not list(cache_folder().rglob(f"{sha256}*"))
    hub.spoiled.clear()
    assert (pull() / UNET).read_bytes() == (folder / UNET).read_bytes()


def test_half_precision_is_taken_when_asked_for_and_where_there_is_nothing_else(hub: FakeHub, folder: Path) -> None:
    shutil.copy(folder / UNET, folder / HALF)
    hub.add("owner/tiny", folder)
    weights = {file.path for file in plan_pull(TINY, variant="fp16").files if file.sha256}
    assert weights == {HALF, "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"}
    assert UNET in {file.path for file in plan_pull(TINY).files}
    (folder / UNET).unlink()
    hub.add("owner/tiny", folder)
    assert HALF in {file.path for file in plan_pull(TINY).files}
    assert (pull() / HALF).exists()


def test_shards_come_with_their_index(hub: FakeHub, folder: Path) -> None:
    tensors = load_file(folder / UNET)
    (folder / UNET).unlink()
    places: dict[str, str] = {}
    for i, names in enumerate((list(tensors)[::2], list(tensors)[1::2]), start=1):
        shard = f"diffusion_pytorch_model-0000{i}-of-00002.safetensors"
        save_file({name: tensors[name] for name in names}, folder / "unet" / shard)
        places |= dict.fromkeys(names, shard)
    (folder / f"{UNET}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    hub.add("owner/tiny", folder)
    found = pull()
    assert identify(found).missing == ()
    assert len(weight_files(found / "unet", "unet")) == 2


def test_added_tokens_come_with_the_tokenizer(hub: FakeHub, folder: Path) -> None:
    (folder / "tokenizer" / "added_tokens.json").write_text('{"!": 0}')
    hub.add("owner/tiny", folder)
    assert [token.content for token in Tokenizer.from_folder(pull() / "tokenizer").added] == ["!"]


def test_a_revision_has_a_name_of_its_own(hub: FakeHub, folder: Path) -> None:
    hub.add("owner/tiny", folder)
    (folder / "tokenizer" / "tokenizer_config.json").write_text("{}")
    hub.add("owner/tiny", folder, revision="v2", commit="c" * 40)
    other = HubName("owner/tiny", "v2")
    found = pull(other)
    assert find_cached(other) == found
    assert find_cached(HubName("owner/tiny", "c" * 40)) == found
    assert find_cached(TINY) is None
    assert [str(snapshot.name) for snapshot in cached_snapshots()] == ["owner/tiny@v2"]


def test_one_file_of_a_repository(hub: FakeHub, folder: Path) -> None:
    save_file({"x": torch.zeros(3)}, folder / "one.safetensors")
    hub.add("owner/tiny", folder)
    name = HubName("owner/tiny", None, "one.safetensors")
    path = pull(name)
    assert path == find_cached(name)
    assert path.read_bytes() == (folder / "one.safetensors").read_bytes()
    assert [path for path, _ in hub.fetched()] == ["one.safetensors"]


# Refusals


def test_another_architecture_is_refused_before_its_weights(hub: FakeHub, folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "StableDiffusionXLPipeline"}))
    hub.add("owner/tiny", folder)
    with pytest.raises(ModelLoadError, match="StableDiffusionXLPipeline"):
        pull()
    assert not any(path.endswith(".safetensors") for path, _ in hub.fetched())


def without_index(folder: Path) -> None:
    (folder / "model_index.json").unlink()
    save_file({"x": torch.zeros(3)}, folder / "whole.safetensors")


def only_pickles(folder: Path) -> None:
    (folder / UNET).unlink()


def truncated(folder: Path) -> None:
    (folder / UNET).write_bytes((folder / UNET).read_bytes()[:-4])


@pytest.mark.parametrize(
    ("spoil", "name", "variant", "message"),
    [
        (without_index, TINY, None, "it has no model_index.json .*--file: whole.safetensors"),
        (only_pickles, TINY, None, f"no {UNET}: only pickles, which are never pulled"),
        (truncated, TINY, None, "is cut short"),
        (None, TINY, "fp16", "owner/tiny has no fp16 weights"),
        (None, HubName("owner/tiny", "v9"), None, "owner/tiny has no revision v9"),
        (None, HubName("owner/other"), None, "the hub has no owner/other, or it is private"),
        (None, HubName("owner/tiny", None, "b.safetensors"), None, "owner/tiny has no file b.safetensors"),
        (None, HubName("owner/tiny", None, "model.ckpt"), None, "model.ckpt is no safetensors file"),
    ],
)
def test_what_cannot_be_pulled(
    spoil: Callable[[Path], None] | None,
    name: HubName,
    variant: str | None,
    message: str,
    hub: FakeHub,
    folder: Path,
) -> None:
    if spoil is not None:
        spoil(folder)
    hub.add("owner/tiny", folder)
    with pytest.raises(LatentgenError, match=message):
        pull(name, variant=variant)
    assert not any(path.endswith((".bin", ".ckpt", ".py")) for path, _ in hub.fetched())


@pytest.mark.parametrize(
    ("status", "code", "kind", "message"),
    [
        (403, "GatedRepo", ModelNotFoundError, "accepted its terms .*hf auth login, or set HF_TOKEN"),
        (401, "GatedRepo", ModelNotFoundError, "accepted its terms"),
        (401, "RepoNotFound", ModelNotFoundError, "has no owner/tiny, or it is private"),
        (403, "", ModelNotFoundError, "does not give out owner/tiny .HTTP 403"),
        (500, "", RuntimeFailure, "the hub answered HTTP 500"),
    ],
)
def test_what_the_hub_refuses(
    status: int, code: str, kind: type[LatentgenError], message: str, hub: FakeHub, folder: Path
) -> None:
    hub.add("owner/tiny", folder).error = (status, code)
    with pytest.raises(kind, match=message) as caught:
        plan_pull(TINY)
    assert "\n" not in str(caught.value)
    assert hub.endpoint not in str(caught.value)


def test_a_token_opens_a_gated_model_and_goes_to_the_hub_only(
    hub: FakeHub, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    hub.add("owner/tiny", folder).token = "hf_secret"
    with pytest.raises(ModelNotFoundError, match="accepted its terms"):
        plan_pull(TINY)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.requests.clear()
    pull()
    asked = [(headers.get("authorization"), path) for _, path, headers in hub.requests]
    assert {token for token, path in asked if not path.startswith("/blob/")} == {"Bearer hf_secret"}
    assert {token for token, path in asked if path.startswith("/blob/")} == {None}
    assert "hf_secret" not in "".join(capfd.readouterr())
    assert not [path for path in cache_folder().rglob("*") if path.is_file() and b"hf_secret" in path.read_bytes()]


def test_no_network_is_one_line(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the discard port, where nobody listens
    with pytest.raises(RuntimeFailure, match="owner/tiny could not be fetched: the connection failed") as caught:
        plan_pull(TINY)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_is_obeyed(name: str, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert offline_variable() is None
    monkeypatch.setenv(name, "1")
    with pytest.raises(InputError, match=f"owner/tiny cannot be pulled: {name} is set"):
        plan_pull(TINY)
    assert hub.requests == []


def test_a_full_disk_is_said_before(hub: FakeHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("owner/tiny", folder)
    plan = plan_pull(TINY)
    check_space(plan)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=plan.size - 1))
    with pytest.raises(RuntimeFailure, match=r"needs 1 MB more, and the disk of .* has 1 MB left .*HF_HOME"):
        check_space(plan)


def test_a_disk_that_fills_up_keeps_what_arrived(hub: FakeHub, folder: Path) -> None:
    hub.add("owner/tiny", folder)
    plan = plan_pull(TINY)
    with file_size_limit(200_000), pytest.raises(RuntimeFailure, match=r"the disk is full.*what has arrived is kept"):
        fetch(plan, Reports())
    hub.requests.clear()
    assert (pull() / UNET).read_bytes() == (folder / UNET).read_bytes()
    assert [text[:6] for path, text in hub.fetched() if path == UNET] == ["bytes="]


def test_two_pulls_of_one_file_do_not_meet(hub: FakeHub, folder: Path) -> None:
    hub.add("owner/tiny", folder)
    plan = plan_pull(TINY)
    refused: list[str] = []

    def second(count: int, path: str) -> None:
        if path == UNET and not refused:
            with pytest.raises(InputError, match="another process is pulling owner/tiny") as caught:
                fetch(plan, Reports())
            refused.append(str(caught.value))

    assert (fetch(plan, second) / UNET).read_bytes() == (folder / UNET).read_bytes()
    assert refused


# The cache


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"HF_HUB_CACHE": "/a", "HF_HOME": "/b"}, "/a"),
        ({"HF_HOME": "/b", "XDG_CACHE_HOME": "/c"}, "/b/hub"),
        ({"XDG_CACHE_HOME": "/c"}, "/c/huggingface/hub"),
        ({"HOME": "/h"}, "/h/.cache/huggingface/hub"),
        ({"HF_HOME": "~/b", "HOME": "/h"}, "/h/b/hub"),
    ],
)
def test_the_cache_lies_where_the_library_has_it(
    variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library's own rule is in its module `constants`, read when it is imported: so it is run again."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    theirs: dict[str, object] = {"__name__": "constants"}
    exec(compile(Path(constants.__file__).read_text(), constants.__file__, "exec"), theirs)
    assert str(cache_folder()) == theirs["HF_HUB_CACHE"] == expected


def test_what_the_library_fetched_is_found_and_the_reverse(hub: FakeHub, folder: Path) -> None:
    hub.add("owner/tiny", folder)
    theirs = Path(hf_hub_download("owner/tiny", "model_index.json", cache_dir=cache_folder(), endpoint=hub.endpoint))
    assert find_cached(TINY) == theirs.parent
    ours = pull()
    (repository,) = scan_cache_dir(cache_folder()).repos
    (revision,) = repository.revisions
    assert (repository.repo_id, revision.snapshot_path.resolve()) == ("owner/tiny", ours.resolve())
    assert revision.refs == {"main"}


def test_a_path_in_the_cache_has_a_name(hub: FakeHub, folder: Path) -> None:
    hub.add("owner/tiny", folder)
    found = pull()
    assert cached_name(found) == TINY
    assert cached_name(found / UNET) == HubName("owner/tiny", None, UNET)
    assert load_model(found).name == "owner/tiny", "not the commit that its folder is named after"
    assert cached_name(folder) is None
    assert cached_name(cache_folder()) is None


@pytest.mark.parametrize("content", [b"", b"../../../../etc", b"\xff", b"main", b"A" * 40])
def test_a_reference_that_is_no_commit_leads_nowhere(content: bytes, hub: FakeHub, folder: Path) -> None:
    hub.add("owner/tiny", folder)
    found = pull()
    (found.parent.parent / "refs" / "main").write_bytes(content)
    assert find_cached(TINY) is None
    assert [snapshot.name.revision for snapshot in cached_snapshots()] == ["a" * 40]


def test_removing_frees_what_it_says_and_nothing_else(hub: FakeHub, folder: Path, tiny_folder: Path) -> None:
    hub.add("owner/tiny", folder)
    hub.add("owner/other", tiny_folder)
    pull()
    kept = pull(HubName("owner/other"))
    (folder / "scheduler" / "scheduler_config.json").write_text(
        (folder / "scheduler" / "scheduler_config.json").read_text() + "\n"
    )
    hub.add("owner/tiny", folder, revision="v2", commit="b" * 40)
    newer = pull(HubName("owner/tiny", "v2"))
    removal = plan_removal(HubName("owner/tiny", "v2"))
    assert removal is not None
    assert removal.commits == ("b" * 40,)
    assert removal.freed_bytes == (folder / "scheduler" / "scheduler_config.json").stat().st_size
    remove(removal)
    assert not newer.exists()
    assert read_config(find_cached(TINY) or Path()) == TINY_MODEL
    whole = plan_removal(TINY)
    assert whole is not None
    assert whole.freed_bytes > 10**6
    remove(whole)
    assert [snapshot.folder for snapshot in cached_snapshots()] == [kept]
    assert plan_removal(TINY) is None


def test_what_a_pull_left_before_it_had_a_snapshot_is_removed(hub: FakeHub, folder: Path) -> None:
    begun = repository_folder("owner/tiny") / "blobs" / f"{'0' * 64}.incomplete"
    begun.parent.mkdir(parents=True)
    begun.write_bytes(bytes(1000))
    removal = plan_removal(TINY)
    assert removal is not None
    assert (removal.commits, removal.freed_bytes) == ((), 1000)
    remove(removal)
    assert not repository_folder("owner/tiny").exists()
    assert plan_removal(TINY) is None


def test_sizes_in_words() -> None:
    assert [gigabytes(size) for size in (0, 1_500, 335_000_000, 4_265_146_304)] == ["0 kB", "2 kB", "335 MB", "4.27 GB"]
