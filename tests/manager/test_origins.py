"""Models behind URLs: fetched once, gone on with after a cut, another folder for another content, no secret shown."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pilotlight.core.errors import MissingExtra, ModelNotFound
from pilotlight.files import modelfiles, place
from pilotlight.files.cache import Cache
from pilotlight.manager import models, origins

MB = 1 << 20


class Site(http.server.ThreadingHTTPServer):
    """Serves a folder below /m/, in ranges. answers: how many requests for content were answered, by name."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lists = True
        self.ranges = True
        self.fails_after: int | None = None
        """Break the connection of each request for content after so many of them."""
        self.sent: dict[str, int] = {}
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/m"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def site(self) -> Site:
        assert isinstance(self.server, Site)
        return self.server

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        name = self.path.partition("?")[0].removeprefix("/m").strip("/")
        path = self.site.folder / name
        if path.is_dir():
            names = sorted(p.name + "/" * p.is_dir() for p in path.iterdir()) if self.site.lists else []
            links = "".join(f'<a href="/m/{name + "/" if name else ""}{n}">{n}</a>' for n in names)
            self.answer(200 if self.site.lists else 404, links.encode(), {"Content-Type": "text/html"})
        elif not path.is_file():
            self.answer(404, b"", {})
        else:
            self.content(name, path.read_bytes())

    def content(self, name: str, content: bytes) -> None:
        headers = {"ETag": f'"{hash(content)}"', "Content-Type": "application/octet-stream"}
        asked = self.headers.get("Range") if self.site.ranges else None
        status = 200
        if self.site.ranges:
            headers["Accept-Ranges"] = "bytes"
        if asked:
            start, _, stop = asked.removeprefix("bytes=").partition("-")
            size, first, last = len(content), int(start), min(int(stop or len(content)), len(content) - 1)
            status, content = 206, content[first : last + 1]
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        if self.command == "GET":
            self.site.sent[name] = self.site.sent.get(name, 0) + len(content)
            if self.site.fails_after is not None and sum(self.site.sent.values()) > self.site.fails_after:
                self.close_connection = True
                return
        self.answer(status, content, headers)

    def answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["A"]}))
    (folder / "tokenizer.json").write_bytes(b"t" * 1000)
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * (3 * MB // 256))
    (folder / "README.md").write_text("not needed")
    (folder / "code.py").write_text("not wanted")
    monkeypatch.setattr(origins, "PIECE_BYTES", MB)
    monkeypatch.setattr(origins, "AGAIN_S", 0.0)
    monkeypatch.setenv(place.VARIABLE, str(tmp_path / "cache"))
    made = Site(folder)
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("lists", "ranges"), [(True, True), (False, True), (True, False)])
def test_a_model_is_fetched_once(site: Site, *, lists: bool, ranges: bool) -> None:
    site.lists, site.ranges = lists, ranges
    resolved = models.resolve(site.url)
    assert resolved.name == site.url
    folder = Path(resolved.path)
    names = ["config.json", "model.safetensors", "tokenizer.json"]
    assert content(folder) == {name: (site.folder / name).read_bytes() for name in names}
    sent = dict(site.sent)
    assert models.resolve(site.url) == resolved
    assert site.sent == sent, "it was sent again"


def test_the_cache_links_to_it(site: Site, tmp_path: Path) -> None:
    folder = Path(models.resolve(site.url).path)
    cache = Cache(tmp_path / "cache")
    staged = cache.make("v", folder)
    assert (staged.path / "model.safetensors").samefile(folder / "model.safetensors")
    assert all(source.hub_blob is not None for source in modelfiles.of(folder))
    staged.close()


def test_a_changed_model_is_another_folder(site: Site) -> None:
    before = models.resolve(site.url)
    (site.folder / "model.safetensors").write_bytes(b"other")
    after = models.resolve(site.url)
    assert before.identity != after.identity
    assert content(Path(after.path))["model.safetensors"] == b"other"
    assert len(content(Path(before.path))["model.safetensors"]) == 3 * MB, "a job may still use it"


def test_a_download_that_is_cut_is_gone_on_with(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(origins, "FILES_AT_ONCE", 1)
    site.fails_after = 2 * MB + 5000
    with pytest.raises(ModelNotFound, match=r"can't be fetched: model.safetensors: "):
        models.resolve(site.url)
    site.fails_after, site.sent = None, {}
    folder = Path(models.resolve(site.url).path)
    assert len(content(folder)["model.safetensors"]) == 3 * MB
    assert site.sent["model.safetensors"] == MB


def test_a_server_that_stumbles_is_asked_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([OSError("reset"), OSError("reset")])
    filesystem, _ = origins._open(site.url)
    cat = type(filesystem).cat_file

    def stumbling(self: Any, *arguments: Any, **more: Any) -> Any:
        error = next(answers, None)
        if error is not None:
            raise error
        return cat(self, *arguments, **more)

    monkeypatch.setattr(type(filesystem), "cat_file", stumbling)
    assert len(content(Path(models.resolve(site.url).path))) == 3


def test_what_can_not_be_had_is_said(site: Site) -> None:
    with pytest.raises(ModelNotFound, match=r"is no model: it has no config.json"):
        models.resolve(f"{site.url}/nowhere")
    gone = "http://user:secret@127.0.0.1:1/m?sig=secret"
    with pytest.raises(ModelNotFound, match=r"http://127.0.0.1:1/m ") as caught:
        models.resolve(gone)
    assert "secret" not in str(caught.value)
    assert origins._reason(OSError("403, url='https://me:secret@h/m?sig=secret'")) == "403, url='https://h/m'"
    with pytest.raises(ModelNotFound, match="nothing here knows how to read gopher://"):
        models.resolve("gopher://x/y")


def test_a_missing_library_is_named(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    with pytest.raises(MissingExtra, match=r"pip install 'pilotlight\[s3\]'"):
        models.resolve("s3://bucket/model")


def test_a_hub_id_may_be_a_url(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    def snapshot(model: str, revision: str | None, _patterns: list[str]) -> Path:
        asked.append((model, revision))
        raise ModelNotFound("not now")

    monkeypatch.setattr(models, "_snapshot", snapshot)
    for model in ("hf://owner/name", "hf://owner/name@v1"):
        with pytest.raises(ModelNotFound):
            models.resolve(model)
    assert asked == [("owner/name", None), ("owner/name", "v1")]


def test_a_model_in_a_bucket(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs", reason="the extra `s3` is not installed")
    server = pytest.importorskip("moto.server", reason="moto, which plays S3, is not installed")
    s3 = server.ThreadedMotoServer(port=0)
    s3.start()
    host, port = s3.get_host_and_port()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    try:
        filesystem, _ = origins._open("s3://bucket/models/m")
        filesystem.mkdir("bucket")
        for path in site.folder.iterdir():
            filesystem.pipe_file(f"bucket/models/m/{path.name}", path.read_bytes())
        resolved = models.resolve("s3://bucket/models/m")
        names = ["config.json", "model.safetensors", "tokenizer.json"]
        assert content(Path(resolved.path)) == {name: (site.folder / name).read_bytes() for name in names}
        assert resolved.name == "s3://bucket/models/m"
        with pytest.raises(ModelNotFound, match="has no config"):
            models.resolve("s3://bucket/models/other")
    finally:
        s3.stop()
