"""Servers on loopback that stand in for the Hugging Face Hub and for Ollama's registry, close enough for the real clients.

Both check the sha256 and the size of what arrives, count its bytes, and can be told to fail or to hold an upload half-way.
"""

import base64
import hashlib
import http.server
import json
import re
import threading
import time
from contextlib import contextmanager
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_" + "standInToken0123456789abcdefABCD"
SECRET_REPLY = f"you sent Authorization: Bearer {TOKEN}, which is no good"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def reply(self, code=200, body=b"", **headers):
        body = json.dumps(body).encode() if isinstance(body, (dict, list)) else body
        self.send_response(code)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), str(value))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self):
        """All that was sent; under `hold` the reading stops at so many bytes; when the server is let go, what it was reading is lost."""
        left, read = int(self.headers.get("Content-Length") or 0), []
        while left:
            chunk = self.rfile.read(min(left, 65536))
            if not chunk:
                raise ConnectionError("cut")
            left -= len(chunk)
            read.append(chunk)
            if self.command in ("PUT", "PATCH") and "/manifests/" not in self.path:
                self.server.arrived += len(chunk)
                if self.server.hold is not None and self.server.arrived >= self.server.hold:
                    self.server.holding.set()
                    self.server.go_on.wait(60)
                    raise ConnectionError("who sent it is gone")
        return b"".join(read)

    def answer(self):
        self.server.seen.append((self.command, urlsplit(self.path).path))
        for pattern, (code, said) in self.server.fail.items():
            if re.search(pattern, f"{self.command} {self.path}"):
                self.body()
                return self.reply(code, said)
        try:
            return self.route(unquote(urlsplit(self.path).path), parse_qs(urlsplit(self.path).query))
        except ConnectionError:
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = answer


class HubHandler(Handler):
    def route(self, path, query):
        s = self.server
        if path.startswith("/upload/"):  # as at a storage provider: the URL is the permission, the token has no business here
            assert "authorization" not in self.headers
            return self.upload(*path.split("/")[2:])
        if self.headers.get("authorization") != f"Bearer {TOKEN}":
            self.body()
            return self.reply(
                401, {"error": "Invalid username or password."}, X_Error_Message="Invalid credentials in Authorization header"
            )
        if path == "/api/repos/create":
            asked = json.loads(self.body())
            repo = f"{asked['organization']}/{asked['name']}"
            known = repo in s.repos
            s.repos.setdefault(repo, {})
            s.visibility.setdefault(repo, asked.get("visibility"))
            return self.reply(
                409 if known else 200, {"url": f"{s.url}/{repo}"} | ({"error": "You already created this model repo"} if known else {})
            )
        if path == "/api/validate-yaml":
            return self.validate(json.loads(self.body())["content"])
        if found := re.fullmatch(
            r"/api/models/([^/]+/[^/]+)/(preupload|commit|paths-info|xet-write-token|revision|tree)/(?:main|a{40})", path
        ):
            return getattr(self, found[2].replace("-", "_"))(found[1])
        if found := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            return self.batch(found[1])
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            return self.resolve(*found.groups())
        self.body()
        return self.reply(404, {"error": f"no such place: {path}"}, X_Error_Code="EntryNotFound")

    def validate(self, content):
        """What the hub's validator refuses of the fields that are used here."""
        import yaml

        front = yaml.safe_load(content.split("---\n")[1])
        wrong = [
            k
            for k in ("base_model", "datasets")
            for v in [front.get(k) or []]
            for i in ([v] if isinstance(v, str) else v)
            if not re.fullmatch(r"[\w.-]+/[\w.-]+", i)
        ]
        wrong += [] if front.get("license") in LICENCES else ["license"]
        wrong += (
            [] if front.get("base_model_relation", "adapter") in ("adapter", "merge", "quantized", "finetune") else ["base_model_relation"]
        )
        wrong += ["license_link"] if front.get("license") == "other" and not front.get("license_link") else []
        for model in front.get("model-index", []):
            for result in model["results"]:
                wrong += [] if {"type"} <= result["task"].keys() and {"type", "name"} <= result["dataset"].keys() else ["model-index"]
                wrong += ["model-index"] if any(not {"type", "value"} <= m.keys() for m in result["metrics"]) else []
        return self.reply(400 if wrong else 200, {"errors": [{"message": f'"{w}" is not valid'} for w in wrong], "warnings": []})

    def preupload(self, repo):
        files, there = json.loads(self.body())["files"], self.server.repos[repo]
        large = {f["path"]: f["size"] > 100_000 or b"\0" in base64.b64decode(f["sample"]) for f in files}
        modes = [
            {"path": p, "uploadMode": "lfs" if big else "regular", "shouldIgnore": False, "oid": there.get(p, {}).get("oid")}
            for p, big in large.items()
        ]
        return self.reply(200, {"files": modes})

    def batch(self, repo):
        s, answer = self.server, []
        for o in json.loads(self.body())["objects"]:
            entry = {"oid": o["oid"], "size": o["size"]}
            if o["oid"] not in s.objects:
                upload = {"href": f"{s.url}/upload/{o['oid']}/{o['size']}"}
                if s.part and o["size"] > s.part:
                    parts = -(-o["size"] // s.part)
                    upload = {
                        "href": f"{s.url}/upload/{o['oid']}/done",
                        "header": {"chunk_size": str(s.part)} | {str(n + 1): f"{s.url}/upload/{o['oid']}/part/{n}" for n in range(parts)},
                    }
                entry["actions"] = {"upload": upload}
            answer.append(entry)
        return self.reply(200, {"objects": answer})

    def upload(self, oid, *what):
        """A whole object, a part of one, or the word that all parts are there."""
        s, body = self.server, self.body()
        if what[0] == "part":
            s.parts.setdefault(oid, {})[int(what[1])] = body
            return self.reply(200, ETag=f'"{hashlib.md5(body).hexdigest()}"')
        if what[0] == "done":
            told = json.loads(body)
            parts = s.parts.pop(oid)
            assert told["oid"] == oid and [p["partNumber"] for p in told["parts"]] == [n + 1 for n in sorted(parts)]
            body = b"".join(parts[n] for n in sorted(parts))
        elif len(body) != int(what[0]):
            return self.reply(400, {"error": "another size than announced"})
        if hashlib.sha256(body).hexdigest() != oid:
            return self.reply(400, {"error": "another sha256 than announced"})
        s.objects[oid] = body
        return self.reply(200, {})

    def xet_write_token(self, repo):
        """Where hf_xet takes its pieces: its own local store, which it has for tests."""
        self.server.xet_asked += 1
        cas, end = f"local://{self.server.cas}", str(int(time.time()) + 3600)
        return self.reply(
            200,
            {"casUrl": cas, "accessToken": "for-xet", "exp": int(end)},
            X_Xet_Cas_Url=cas,
            X_Xet_Access_Token="for-xet",
            X_Xet_Token_Expiration=end,
        )

    def commit(self, repo):
        s = self.server
        header, *lines = [json.loads(line) for line in self.body().splitlines()]
        new = {}
        for line in lines:
            of = line["value"]
            if line["key"] == "file":
                content = base64.b64decode(of["content"])
                new[of["path"]] = {
                    "oid": hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest(),
                    "size": len(content),
                    "content": content,
                }
                s.committed_bytes += len(content)
            elif line["key"] == "lfsFile":
                if of["oid"] not in s.objects and not s.xet_asked:
                    return self.reply(400, {"error": f"{of['path']}: its content has not arrived"})
                new[of["path"]] = {"oid": of["oid"], "size": of["size"], "lfs": True, "content": s.objects.get(of["oid"])}
        s.repos[repo].update({p: f for p, f in new.items() if p not in s.forgets})
        s.commits.append((repo, header["value"]["summary"], sorted(new)))
        return self.reply(200, {"commitUrl": f"{s.url}/{repo}/commit/{len(s.commits):040x}", "commitOid": f"{len(s.commits):040x}"})

    def paths_info(self, repo):
        asked = parse_qs(self.body().decode())["paths"]
        return self.reply(200, [self.info(p, f) for p, f in self.server.repos.get(repo, {}).items() if p in asked])

    def info(self, path, f):
        pointer = {"lfs": {"oid": f["oid"], "size": f["size"], "pointerSize": 130}} if f.get("lfs") else {}
        return {"type": "file", "path": path, "size": f["size"], "oid": "0" * 40 if pointer else f["oid"], **pointer}

    def revision(self, repo):
        return self.reply(200, {"_id": "1", "id": repo, "sha": "a" * 40, "siblings": [{"rfilename": p} for p in self.server.repos[repo]]})

    def tree(self, repo):
        return self.reply(200, [self.info(p, f) for p, f in self.server.repos[repo].items()])

    def resolve(self, repo, path):
        f = self.server.repos.get(repo, {}).get(path)
        if not f:
            return self.reply(404, b"", X_Error_Code="EntryNotFound")
        return self.reply(200, f["content"], ETag=f'"{f["oid"]}"', X_Repo_Commit="a" * 40, X_Linked_Size=f["size"], Accept_Ranges="none")


LICENCES = {
    "cc0-1.0",
    "apache-2.0",
    "mit",
    "gemma",
    "other",
    "llama2",
    "llama3",
    "llama3.1",
    "llama3.2",
    "llama3.3",
}  # of the hub's list, those used here


class RegistryHandler(Handler):
    """Docker's registry API, version 2, as far as Ollama pushes by it."""

    def route(self, path, query):
        s = self.server
        if found := re.fullmatch(r"/v2/([^/]+/[^/]+)/blobs/(sha256:\w+)", path):
            return self.reply(200 if found[2] in s.objects else 404)
        if path.endswith("/blobs/uploads/"):
            self.body()
            s.parts[str(len(s.seen))] = b""
            return self.reply(202, Location=f"{s.url}/upload/{len(s.seen)}")
        if found := re.fullmatch(r"/upload/(\d+)", path):
            if self.command == "PATCH":
                s.parts[found[1]] += self.body()
                return self.reply(202, Location=f"{s.url}/upload/{found[1]}")
            body, digest = s.parts.pop(found[1]), query["digest"][0]
            if f"sha256:{hashlib.sha256(body).hexdigest()}" != digest:
                return self.reply(400, {"errors": [{"code": "DIGEST_INVALID"}]})
            s.objects[digest] = body
            return self.reply(201)
        if found := re.fullmatch(r"/v2/([^/]+/[^/]+)/manifests/(.+)", path):
            told = json.loads(self.body())
            layers = [*told["layers"], told["config"]]
            if any(len(s.objects.get(layer["digest"], b"")) != layer["size"] for layer in layers):
                return self.reply(400, {"errors": [{"code": "BLOB_UNKNOWN"}]})
            s.repos[f"{found[1]}:{found[2]}"] = told
            return self.reply(201)
        self.body()
        return self.reply(404)


@contextmanager
def standing(handler, folder):
    """A server of that kind: `.url`, `.repos`, `.objects` by sha256, `.arrived` bytes of uploads, `.seen` requests, `.fail` {pattern: (status, body)}, `.hold` bytes."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.url = f"http://127.0.0.1:{server.server_port}"
    server.repos, server.objects, server.parts, server.fail, server.visibility = {}, {}, {}, {}, {}
    server.seen, server.commits, server.arrived, server.committed_bytes, server.xet_asked = [], [], 0, 0, 0
    server.forgets = set()
    server.hold, server.part, server.cas = None, None, folder / "cas"
    server.holding, server.go_on = threading.Event(), threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.go_on.set()
        server.shutdown()
        server.server_close()
