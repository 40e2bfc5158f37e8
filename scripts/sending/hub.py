"""The Hugging Face Hub: what stands there already, and sending what does not.

    from scripts.sending import hub
    hub.send(api, "user/name", files, bar, "message")

One commit a repository: nobody ever downloads half a model. Before it, the large files go up one by one under their sha256 (git LFS, or Xet where hf_xet
is installed and the Hub speaks it), and what is there of an interrupted push is not sent again: LFS asks for each file, Xet for each piece of it.
Errors are one line, and never hold a token, whatever the server says.
"""

import hashlib
import re
from contextlib import contextmanager

LOOKED = "HF_TOKEN, or the file that `hf auth login` writes"


def token():
    """The user's token, or None: HF_TOKEN, else the one that `hf auth login` keeps."""
    import huggingface_hub

    return huggingface_hub.get_token()


def clean(text, secret):
    """A text in one line without the token, or anything that looks like one."""
    text = str(text).replace(secret, "…") if secret else str(text)
    text = re.sub(r"\bhf_\w{6,}|(?i:\bbearer\s+)(?!token\b)[\w.~+/=-]{6,}", "…", text)
    return " ".join(text.split())


def client(secret):
    """The Hub's API, quiet: its own bars and warnings would say what our line and bar say."""
    import huggingface_hub
    from huggingface_hub.utils import disable_progress_bars, logging
    from huggingface_hub.utils._runtime import is_xet_available

    if not is_xet_available():
        disable_progress_bars()  # with them off hf_xet reports nothing to us either
    logging.set_verbosity(100)
    return huggingface_hub.HfApi(token=secret)


def offline():
    import huggingface_hub

    return huggingface_hub.constants.is_offline_mode()


def endpoint():
    import huggingface_hub

    return huggingface_hub.constants.ENDPOINT


def prepare(api, repo, files, private):
    """Make the repository if need be; the files that do not stand there as they are here."""
    api.create_repo(repo, private=private or None, exist_ok=True)
    return lacking(api, repo, files)


def lacking(api, repo, files):
    """The files that do not stand in the repository with these bytes: sha256 for large ones, git's id for small ones."""
    there = {
        f.path: f.lfs.sha256 if f.lfs else f.blob_id for f in api.get_paths_info(repo, [f["path"] for f in files]) if hasattr(f, "blob_id")
    }
    return [f for f in files if there.get(f["path"]) != f["sha256"] and there.get(f["path"], "") != git_id(f)]


def git_id(file):
    """The id that git gives to a small file's bytes; a large one is told by its sha256."""
    if file["size"] > 20e6:
        return file["sha256"]
    body = file["source"] if isinstance(file["source"], bytes) else file["source"].read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


def send(api, repo, files, bar, message):
    """Send the files, commit them, and see that they stand there. `bar` counts their bytes as they leave. Raises ValueError."""
    begun = bar.n
    with counted_by_xet(bar):
        api.create_commit(repo, [addition(f, bar) for f in files], commit_message=message)
    bar.update(begun + sum(f["size"] for f in files) - bar.n)  # small files go with the commit, pieces that Xet knows not at all
    bar.refresh()
    if left := lacking(api, repo, files):
        raise ValueError(f"after the commit {', '.join(f['path'] for f in left)} does not stand there as it was sent")


def addition(file, bar):
    """A file to be committed whose reading moves the bar. Its sha256 is known, so that it is not hashed once more."""
    from huggingface_hub import CommitOperationAdd

    class Counted(CommitOperationAdd):
        @contextmanager
        def as_file(self, with_tqdm=False):
            with super().as_file() as f:
                if with_tqdm:  # how the library marks the reading that is an upload
                    count(f, bar)
                yield f

    made = Counted(file["path"], file["source"])
    made.upload_info.sha256 = bytes.fromhex(file["sha256"])
    return made


def count(f, bar):
    """Let each read move the bar to where the file is, back too: a part that failed is read again."""
    read, last = f.read, f.tell()

    def counting(size=-1):
        nonlocal last
        chunk = read(size)
        here = f.tell()
        bar.update(here - last)
        last = here
        return chunk

    f.read = counting


@contextmanager
def counted_by_xet(bar):
    """While this lasts, what hf_xet reports of its upload moves our bar, in place of its own four."""
    from huggingface_hub.utils import _xet_progress_reporting as reporting

    class Reporter:
        def __init__(self, *_, **__):
            self.sent = 0

        def update_progress(self, group, _items):
            bar.update(group.total_bytes_completed - self.sent)
            self.sent = group.total_bytes_completed

        def close(self):
            pass

    theirs = reporting.XetUploadProgressReporter
    reporting.XetUploadProgressReporter = Reporter
    try:
        yield
    finally:
        reporting.XetUploadProgressReporter = theirs


def told(error, repo, secret):
    """What went wrong, in one line that says what to do."""
    import httpx

    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    answer = next((e.response for e in chain if getattr(e, "response", None) is not None), None)
    where, again = endpoint(), "run the same command again, what arrived is not sent twice"
    by_xet = re.search(r"HTTP status \w+ error \((\d{3}) ([\w ]+)\)", str(error))  # hf_xet has only words for it
    if answer is None and not by_xet:
        if any(isinstance(e, httpx.TransportError) for e in chain):
            return f"{where} is out of reach ({clean(chain[-1], secret)[:150]}); {again}"
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        return f"{repo}: {kind}{clean(error, secret)[:300]}; {again}"
    code = answer.status_code if answer is not None else int(by_xet[1])
    said = next((s for e in chain if (s := getattr(e, "server_message", None))), "") or (by_xet[2] if by_xet else answer.reason_phrase)
    said = f"{repo}: {where} answers {code} ({clean(said, secret)[:200]})"
    if code == 401:
        return f"{said}: the token is not valid; make one with write access ({where}/settings/tokens) and set HF_TOKEN"
    if code in (403, 404):
        return f"{said}: the token may not write there; {repo.split('/')[0]} must be you or an organization of yours, and the token needs write access"
    if code in (402, 413, 507):
        return f'{said}: no room for it on your account; delete something there, or send less: WHAT="adapter gguf"'
    return f"{said}; {again}"
