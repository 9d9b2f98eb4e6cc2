"""Files are looked for nearby, downloaded last, and believed only when their checksum is right."""

import gzip
import hashlib
import http.server
import itertools
import socket
import struct
import threading
import time
from email.utils import formatdate

import pytest

from lowerbound.data import fetch
from lowerbound.data.fetch import RemoteFiles, cache_dir, find, obtain
from lowerbound.errors import DataError

FILE = "toy-idx1-ubyte"
CONTENT = b"\0\0\x08\x01" + struct.pack(">I", 2000) + bytes(range(250)) * 8
ZIPPED = gzip.compress(CONTENT, mtime=0)
OTHER = CONTENT[:-1] + b"\0"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
OTHER_SHA256 = hashlib.sha256(OTHER).hexdigest()
TOY = RemoteFiles("toy", {FILE: SHA256})


def reply(body, status="200 OK", **headers):
    """Returns the bytes of a whole HTTP answer."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    headers = {"Date": formatdate(usegmt=True), "Content-Length": len(body), "Connection": "close", **given}
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers.items() if value is not None)]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Mirror:
    """A web server on the loopback interface that says exactly what it is told to say."""

    def __init__(self):
        self.requests = []
        self.answers = {}
        self.closing = threading.Event()
        mirror = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                mirror.requests.append(self.path)
                answer = mirror.answers.get(self.path, reply(b"no such file", "404 Not Found"))
                if answer is None:  # never answers
                    mirror.closing.wait(10)
                else:
                    self.wfile.write(answer)
                self.close_connection = True

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = False
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server.server_port}"

    def close(self):
        self.closing.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def mirror():
    mirror = Mirror()
    yield mirror
    if mirror.thread.is_alive():
        mirror.close()


@pytest.fixture
def closed_port():
    """A port of 127.0.0.1 on which nothing listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A machine of its own: an empty cache, no data folder, no mirrors, no proxy."""
    for name in ("LOWERBOUND_DATA", "LOWERBOUND_OFFLINE", "LOWERBOUND_MIRRORS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache_dir().is_relative_to(tmp_path)
    return cache_dir() / "toy"


@pytest.fixture
def mirrors(monkeypatch):
    def mirrors(*urls):
        monkeypatch.setenv("LOWERBOUND_MIRRORS", " ".join(urls))

    return mirrors


def files_below(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def refusal(*args):
    """Returns the message with which `obtain` refuses: one paragraph."""
    with pytest.raises(DataError) as caught:
        obtain(*args)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


def test_a_download_is_kept_and_the_second_call_needs_no_server(mirror, mirrors, cache):
    mirror.answers[f"/{FILE}.gz"] = reply(ZIPPED)
    mirrors(mirror.url)
    assert obtain(TOY, FILE) == CONTENT
    mirror.close()
    assert obtain(TOY, FILE) == CONTENT
    assert mirror.requests == [f"/{FILE}.gz"]
    assert files_below(cache) == [cache / f"{FILE}.gz"]
    assert gzip.decompress((cache / f"{FILE}.gz").read_bytes()) == CONTENT


def test_how_a_mirror_zipped_the_file_does_not_matter(mirror, mirrors):
    mirror.answers[f"/{FILE}.gz"] = reply(gzip.compress(CONTENT, 1, mtime=12345))
    mirrors(mirror.url)
    assert obtain(TOY, FILE) == CONTENT


def test_an_answer_without_a_length_is_read_to_its_end(mirror, mirrors):
    mirror.answers[f"/{FILE}.gz"] = reply(ZIPPED, Content_Length=None)
    mirrors(mirror.url)
    assert obtain(TOY, FILE) == CONTENT


def test_an_answer_in_chunks_is_read_whole(mirror, mirrors):
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (ZIPPED[:7], ZIPPED[7:]) if part)
    mirror.answers[f"/{FILE}.gz"] = reply(chunks + b"0\r\n\r\n", Content_Length=None, Transfer_Encoding="chunked")
    mirrors(mirror.url)
    assert obtain(TOY, FILE) == CONTENT


def test_the_name_of_the_data_set_fills_its_place_in_a_mirror(mirror, mirrors):
    mirror.answers[f"/sets/toy/raw/{FILE}.gz"] = reply(ZIPPED)
    mirrors(f"{mirror.url}/sets/{{name}}/raw/")
    assert obtain(TOY, FILE) == CONTENT


def test_a_redirect_to_the_file_is_followed(mirror, mirrors):
    mirror.answers[f"/{FILE}.gz"] = reply(b"", "302 Found", Location="/elsewhere.gz")
    mirror.answers["/elsewhere.gz"] = reply(ZIPPED)
    mirrors(mirror.url)
    assert obtain(TOY, FILE) == CONTENT


@pytest.mark.parametrize("own", [True, False], ids=["both of the user", "one public"])
def test_when_the_first_mirror_lacks_the_file_the_second_is_asked(mirror, mirrors, own):
    mirror.answers[f"/second/{FILE}.gz"] = reply(ZIPPED)
    first, second = f"{mirror.url}/first", f"{mirror.url}/second"
    mirrors(first, *([second] if own else []))
    files = RemoteFiles("toy", {FILE: SHA256}, mirrors=() if own else (second,))
    assert obtain(files, FILE) == CONTENT
    assert mirror.requests == [f"/first/{FILE}.gz", f"/second/{FILE}.gz"]


def test_once_a_mirror_answers_well_no_other_is_asked(mirror, mirrors):
    mirror.answers[f"/first/{FILE}.gz"] = reply(ZIPPED)
    mirrors(f"{mirror.url}/first", f"{mirror.url}/second")
    obtain(TOY, FILE)
    assert mirror.requests == [f"/first/{FILE}.gz"]


BAD_ANSWERS = {
    "not found": (reply(b"gone", "404 Not Found"), ["Not Found"]),
    "an error without a reason phrase": (reply(b"", "503 "), ["503"]),
    "another file": (reply(gzip.compress(OTHER)), [SHA256, OTHER_SHA256]),
    "a body that is cut off": (reply(ZIPPED[:-20], Content_Length=len(ZIPPED)), ["cut off", f"{len(ZIPPED):,}"]),
    "a cut chunk": (
        reply(b"fff\r\n" + ZIPPED[:50], Content_Length=None, Transfer_Encoding="chunked"),
        [],
    ),
    "a cut stream without a length": (reply(ZIPPED[:-20], Content_Length=None), ["cut off"]),
    "a cut file of its own length": (reply(ZIPPED[:-20]), ["cut off"]),
    "a damaged file": (reply(ZIPPED[:-8] + bytes(4) + ZIPPED[-4:]), ["incorrect data check"]),
    "a page": (reply(b"<!DOCTYPE html><html>Sign in to the network</html>"), ["not a gzip file"]),
    "nothing at all": (reply(b""), ["not a gzip file"]),
    "an answer that is no HTTP": (b"SSH-2.0-OpenSSH_9.2\r\n", []),
    "a line without end": (b"HTTP/1.1 200 " + b"K" * 70_000, []),
    "a closed connection": (b"", ["closed connection"]),
    "a length that is no number": (reply(ZIPPED, Content_Length="many"), []),
    "a redirect to itself": (reply(b"", "302 Found", Location=f"/{FILE}.gz"), ["redirect"]),
    "a redirect to a local file": (reply(b"", "302 Found", Location="file:///etc/hostname"), ["file:"]),
}


@pytest.mark.parametrize(("answer", "reasons"), BAD_ANSWERS.values(), ids=BAD_ANSWERS)
def test_a_bad_answer_is_refused_with_its_reason_and_leaves_nothing(mirror, mirrors, tmp_path, answer, reasons):
    mirror.answers[f"/{FILE}.gz"] = answer
    mirrors(mirror.url)
    message = refusal(TOY, FILE)
    assert f"{mirror.url}/{FILE}.gz (" in message
    assert f"{mirror.url}/{FILE}.gz ()" not in message
    for reason in reasons:
        assert reason in message
    assert files_below(tmp_path) == []


@pytest.mark.parametrize("answer", [answer for answer, _ in BAD_ANSWERS.values()], ids=BAD_ANSWERS)
def test_a_bad_answer_is_no_reason_to_leave_out_the_next_mirror(mirror, mirrors, cache, answer):
    mirror.answers[f"/{FILE}.gz"] = answer
    mirror.answers[f"/good/{FILE}.gz"] = reply(ZIPPED)
    mirrors(mirror.url, f"{mirror.url}/good")
    assert obtain(TOY, FILE) == CONTENT
    assert files_below(cache) == [cache / f"{FILE}.gz"]


def test_a_redirect_loop_ends_soon(mirror, mirrors):
    mirror.answers.update(
        {f"/{FILE}.gz": reply(b"", "302 Found", Location="/a"), "/a": reply(b"", "302 Found", Location="/b")}
    )
    mirror.answers["/b"] = reply(b"", "302 Found", Location="/a")
    mirrors(mirror.url)
    refusal(TOY, FILE)
    assert 2 < len(mirror.requests) < 30


def test_a_mirror_that_never_answers_is_given_up(mirror, mirrors, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "_TIMEOUT_S", 0.1)
    mirror.answers[f"/{FILE}.gz"] = None
    mirrors(mirror.url)
    began = time.monotonic()
    assert "timed out" in refusal(TOY, FILE)
    assert time.monotonic() - began < 2
    assert files_below(tmp_path) == []


@pytest.mark.parametrize(
    "answer",
    [
        reply(gzip.compress(bytes(1 << 20))),
        reply(ZIPPED[:2] + bytes(1 << 20)),
        reply(ZIPPED[:2] + bytes(1 << 20), Content_Length=None),
    ],
    ids=["a bomb", "a long body", "a body without a length"],
)
def test_more_than_any_data_set_needs_is_refused(mirror, mirrors, tmp_path, monkeypatch, answer):
    monkeypatch.setattr(fetch, "_MAX_DOWNLOAD", 1 << 16)
    mirror.answers[f"/{FILE}.gz"] = answer
    mirrors(mirror.url)
    assert "larger than any data set" in refusal(TOY, FILE)
    assert files_below(tmp_path) == []


def test_when_nothing_listens_the_message_says_so(mirrors, closed_port, tmp_path):
    mirrors(f"http://127.0.0.1:{closed_port}")
    message = refusal(TOY, FILE)
    assert f"http://127.0.0.1:{closed_port}/{FILE}.gz (" in message
    assert "refused" in message
    assert files_below(tmp_path) == []


@pytest.mark.parametrize(
    "address",
    ["no-address", "http://127.0.0.1:port", "http://[127.0.0.1", "gopher://127.0.0.1/", "http://127.0.0.1\x7f/"],
)
def test_an_impossible_address_is_one_more_mirror_that_failed(mirror, mirrors, address):
    mirror.answers[f"/{FILE}.gz"] = reply(ZIPPED)
    mirrors(address)
    assert address in refusal(TOY, FILE)
    mirrors(address, mirror.url)
    assert obtain(TOY, FILE) == CONTENT


@pytest.mark.parametrize("odd", ["{", "}", "{}", "{0}", "{nmae}", "{name.missing}"])
def test_odd_braces_in_a_mirror_do_not_stop_the_search(mirror, mirrors, odd):
    mirror.answers[f"/good/{FILE}.gz"] = reply(ZIPPED)
    mirrors(f"{mirror.url}/{odd}", f"{mirror.url}/good")
    assert obtain(TOY, FILE) == CONTENT


@pytest.mark.parametrize("value", ["1", "true", "yes", "TRUE"])
def test_offline_makes_no_request(mirror, mirrors, monkeypatch, value):
    mirror.answers[f"/{FILE}.gz"] = reply(ZIPPED)
    mirrors(mirror.url)
    monkeypatch.setenv("LOWERBOUND_OFFLINE", value)
    assert "LOWERBOUND_OFFLINE" in refusal(TOY, FILE)
    assert mirror.requests == []


@pytest.mark.parametrize("value", ["0", ""])
def test_offline_can_be_switched_off(mirror, mirrors, monkeypatch, value):
    mirror.answers[f"/{FILE}.gz"] = reply(ZIPPED)
    mirrors(mirror.url)
    monkeypatch.setenv("LOWERBOUND_OFFLINE", value)
    assert obtain(TOY, FILE) == CONTENT


def test_offline_still_reads_what_was_kept(mirror, mirrors, monkeypatch):
    mirror.answers[f"/{FILE}.gz"] = reply(ZIPPED)
    mirrors(mirror.url)
    obtain(TOY, FILE)
    monkeypatch.setenv("LOWERBOUND_OFFLINE", "1")
    assert obtain(TOY, FILE) == CONTENT
    assert len(mirror.requests) == 1


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Every folder that is searched, in order, with the data set and arguments that make it be searched."""
    given, environment, system = tmp_path / "given", tmp_path / "environment", tmp_path / "system"
    monkeypatch.setenv("LOWERBOUND_DATA", str(environment))
    files = RemoteFiles("toy", {FILE: SHA256}, system=(str(system),))
    folders = [given / "toy", given, environment / "toy", environment, cache_dir() / "toy", system]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    return files, given, folders


@pytest.mark.parametrize("place", range(6))
@pytest.mark.parametrize(("name", "content"), [(FILE, CONTENT), (f"{FILE}.gz", ZIPPED)], ids=["plain", "zipped"])
def test_a_copy_in_any_folder_is_found_without_asking_the_network(mirror, mirrors, places, place, name, content):
    files, given, folders = places
    mirrors(mirror.url)
    (folders[place] / name).write_bytes(content)
    assert obtain(files, FILE, given) == CONTENT
    assert mirror.requests == []


@pytest.mark.parametrize(("nearer", "farther"), list(itertools.pairwise(range(6))))
def test_the_nearer_folder_wins(places, nearer, farther):
    files, given, folders = places
    (folders[nearer] / FILE).write_bytes(CONTENT)
    (folders[farther] / FILE).write_bytes(OTHER)
    assert obtain(files, FILE, given) == CONTENT
    assert find(files, FILE, given) == folders[nearer] / FILE


@pytest.mark.parametrize("place", range(6))
@pytest.mark.parametrize(
    ("name", "content"), [(FILE, OTHER), (f"{FILE}.gz", gzip.compress(OTHER))], ids=["plain", "zipped"]
)
def test_a_copy_with_a_wrong_checksum_is_refused_naming_both(mirror, mirrors, places, place, name, content):
    files, given, folders = places
    mirror.answers[f"/{FILE}.gz"] = reply(ZIPPED)
    mirrors(mirror.url)
    (folders[place] / name).write_bytes(content)
    message = refusal(files, FILE, given)
    assert str(folders[place] / name) in message
    assert SHA256 in message
    assert OTHER_SHA256 in message
    assert mirror.requests == []  # another copy is never put in its place silently


@pytest.mark.parametrize("content", [ZIPPED[:-9], ZIPPED + b"x", b""], ids=["cut", "surplus", "empty"])
def test_a_damaged_copy_is_refused_by_name(tmp_path, content):
    path = tmp_path / f"{FILE}.gz"
    path.write_bytes(content)
    assert str(path) in refusal(TOY, FILE, tmp_path)


def test_a_damaged_copy_in_the_cache_is_refused_and_stays_to_be_looked_at(mirror, mirrors, cache):
    mirror.answers[f"/{FILE}.gz"] = reply(ZIPPED)
    mirrors(mirror.url)
    obtain(TOY, FILE)
    kept = cache / f"{FILE}.gz"
    kept.write_bytes(kept.read_bytes()[:-9])
    assert str(kept) in refusal(TOY, FILE)
    assert len(mirror.requests) == 1


def test_the_failure_lists_folders_mirrors_reasons_and_what_works_offline(mirror, mirrors, places, closed_port):
    files, given, folders = places
    mirror.answers[f"/page/{FILE}.gz"] = reply(b"<html></html>")
    mirrors(f"{mirror.url}/none", f"{mirror.url}/page")
    public = f"http://127.0.0.1:{closed_port}"
    message = refusal(RemoteFiles("toy", files.sha256, (public,), files.system), FILE, given)
    for folder in folders:
        assert str(folder) in message
    assert f"{mirror.url}/none/{FILE}.gz (" in message
    assert "Not Found)" in message
    assert f"{mirror.url}/page/{FILE}.gz (what came is not a gzip file)" in message
    assert f"{public}/{FILE}.gz (" in message
    for advice in (FILE, "--data-dir", "LOWERBOUND_DATA", "mnist-5k", "digits", "lowerbound[demo]"):
        assert advice in message


def test_to_find_a_file_asks_no_network(mirror, mirrors, places):
    files, given, _ = places
    mirror.answers[f"/{FILE}.gz"] = reply(ZIPPED)
    mirrors(mirror.url)
    assert find(files, FILE, given) is None
    assert mirror.requests == []


def test_with_no_mirrors_the_failure_speaks_of_no_download():
    assert "Tried to download" not in refusal(TOY, FILE)


def test_a_cache_that_cannot_be_made_costs_only_the_next_download(mirror, mirrors, tmp_path):
    (tmp_path / "cache").write_text("a file where the cache's folder should be")
    mirror.answers[f"/{FILE}.gz"] = reply(ZIPPED)
    mirrors(mirror.url)
    assert obtain(TOY, FILE) == CONTENT
    assert obtain(TOY, FILE) == CONTENT
    assert len(mirror.requests) == 2


def test_a_cache_that_cannot_be_written_is_left_without_litter(mirror, mirrors, cache):
    blocked = cache / f"{FILE}.gz"
    (blocked / "a folder where the file should be").mkdir(parents=True)
    mirror.answers[f"/{FILE}.gz"] = reply(ZIPPED)
    mirrors(mirror.url)
    assert obtain(TOY, FILE) == CONTENT
    assert files_below(cache) == []


def test_what_another_download_left_half_written_is_not_taken_for_the_file(mirror, mirrors, cache):
    cache.mkdir(parents=True)
    (cache / f"{FILE}.gz.1.part").write_bytes(ZIPPED[:30])
    mirror.answers[f"/{FILE}.gz"] = reply(ZIPPED)
    mirrors(mirror.url)
    assert obtain(TOY, FILE) == CONTENT


def test_many_threads_that_fetch_at_once_all_get_the_file_and_keep_it_whole(mirror, mirrors, cache):
    mirror.answers[f"/{FILE}.gz"] = reply(ZIPPED)
    mirrors(mirror.url)
    got = []
    threads = [threading.Thread(target=lambda: got.append(obtain(TOY, FILE))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [CONTENT] * 8
    assert files_below(cache) == [cache / f"{FILE}.gz"]
    assert gzip.decompress((cache / f"{FILE}.gz").read_bytes()) == CONTENT
