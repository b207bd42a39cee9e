"""The device's side of shipping: installs releases, checks them, switches to them, and rolls back. It is a single file.

Needs Python >= 3.8. The health check also needs what the release needs, numpy and onnxruntime.

    python3 agent.py serve CLIENT            requests on stdin, answers on stdout, until stdin closes or falls silent
    python3 agent.py watch STORE TOKEN S     rolls back after S seconds without a commit; outlives the connection
    python3 agent.py health FOLDER RUNS      loads and runs a release in a process of its own, because it may crash

Messages have the format of the probe's worker:  u32 length of the JSON | u64 length of the bytes | JSON | bytes,  big-endian.
{"alive": true} precedes an answer that takes long; {"alive": true, "received": N} is sent while bytes of a request arrive. A
store is a folder of this user:

    .compress-store           marks the folder as a store; written before anything else
    lock                      held (flock) by the process that changes anything; the kernel frees it when that process dies
    state.json                the committed releases, newest first; this file is authoritative
    pending.json              a switch that was started and is not committed
    incoming/RANDOM/          files that are arriving, or are being removed
    releases/HASH/            complete releases, named by the hash of their manifest
    current -> releases/HASH  the release that serves

A folder that is not empty and not marked is refused, unless an earlier version of this program made it. This program removes only
what it made, which it recognises by names and hashes. Anything else in a store is listed and left alone.

After an interruption at any step, `recover` makes `current` what state.json says. Requests, in the order of a shipment:

    {"do": "open", "store": PATH, "silence_s": S, "write": true or false, "make": true or false}
                                                     status; "write" locks and recovers, "make" makes a missing store
    {"do": "begin", "release": HASH, "names": [...], "envelope": [[NAME, BYTES], ...]} + the manifest, its signature
    {"do": "put", "name": NAME, "offset": N} + bytes                          a piece of a file, written as it arrives
    {"do": "verify"}                                                          flush, and compare with the manifest
    {"do": "place"}                                                           install: rename into releases/
    {"do": "check", "limit_s": S, "budget": true or false}                    the health check
    {"do": "switch", "deadline_s": S}                                         `current` points to it; the deadline starts
    {"do": "confirm", "limit_s": S}                                           it answers correctly through `current`
    {"do": "commit"}
    {"do": "previous"}                                                        instead of begin to place: roll back
"""

import datetime
import errno
import fcntl
import hashlib
import json
import math
import os
import pathlib
import platform
import pwd
import re
import secrets
import select
import shutil
import signal
import stat
import struct
import subprocess
import sys
import tempfile
import time

HEADER = struct.Struct(">IQ")
CHUNK = 1 << 20
PIECE = 1 << 16
LIMIT_BYTES = 16 << 20  # of a message
LONGEST_DETAIL = 20000  # of a library's message; the other side shortens it, and keeps both its ends
RECORD_BYTES = 1 << 20  # of a record of the store; a valid one has a few hundred
BEAT_S = 2.0
KEPT_RELEASES = 2
MARGIN_BYTES = 1 << 20
RUNS, FEW_RUNS, RUNS_LIMIT_S, ATTEMPTS = 1000, 64, 10.0, 3
LOCK_WAIT_S = 4.0
FORMAT = 1
LARGEST_VERSION = 2**53 - 1
MARKER = ".compress-store"
MARK = {"made_by": "edge-compress", "format": FORMAT}
INCOMING = re.compile(r"[0-9a-f]{16}")
TEMPORARY = re.compile(r"\.writing-[a-z0-9_]{8}|\.current-[0-9a-f]{16}|\.current-back")
OUR_NAMES = re.compile(
    r"\.compress-store|lock|current|incoming|releases|(state|pending)\.json(\.[0-9a-f]{8}\.broken)?|" + TEMPORARY.pattern
)
NAMED_FOREIGN = 20  # largest number of foreign names that are listed
NAME_CHARACTERS = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
MALFORMED = (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, MemoryError, RecursionError)


class Failed(Exception):
    def __init__(self, kind, detail):
        super().__init__(detail)
        self.kind = kind


def step(name):
    """A named step. For tests, COMPRESS_FAULT=NAME:KIND,... injects a fault here: kill, stop, error=ENOSPC, or pause=PATH, which
    makes PATH.reached and waits up to a minute for PATH.go."""
    for fault in os.environ.get("COMPRESS_FAULT", "").split(","):
        where, _, kind = fault.partition(":")
        if where != name:
            continue
        kind, _, value = kind.partition("=")
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif kind == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif kind == "error":
            raise OSError(getattr(errno, value), os.strerror(getattr(errno, value)))
        elif kind == "pause" and not os.path.exists(value + ".reached"):
            with open(value + ".reached", "w"):
                pass
            deadline = time.monotonic() + 60
            while not os.path.exists(value + ".go") and time.monotonic() < deadline:
                time.sleep(0.02)


# ---------------------------------------------------------------- messages


class Silence(Exception):
    """The other side closed the connection, or was silent for too long."""


def read_some(count, silence_s):
    """The bytes that are there, at most `count`."""
    if not select.select([0], [], [], silence_s)[0]:
        raise Silence
    data = os.read(0, min(count, PIECE))
    if not data:
        raise Silence
    return data


def read_exactly(count, silence_s):
    parts = bytearray()
    while len(parts) < count:
        parts += read_some(count - len(parts), silence_s)
    return bytes(parts)


def arriving(count, silence_s, answers):
    """The bytes after a request, in pieces, as they arrive. The other side is told how many have arrived."""
    received = 0
    while received < count:
        piece = read_some(count - received, silence_s)
        received += len(piece)
        yield piece
        answers.beat(received=received)


class Answers:
    """stdout, which nothing else writes to."""

    def __init__(self):
        self.stream = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)  # a library's output must not get between the messages
        self.beaten = time.monotonic()
        self.beat_s = BEAT_S

    def write(self, message):
        text = json.dumps(message).encode()
        self.stream.write(HEADER.pack(len(text), 0) + text)
        self.stream.flush()

    def beat(self, **more):
        if time.monotonic() - self.beaten >= self.beat_s:
            self.beaten = time.monotonic()
            self.write(dict(more, alive=True))


# ---------------------------------------------------------------- files


def flush_folder(path):
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_whole(path, data):
    """Write a temporary file, flush, rename, flush. After a power cut there is the old file or the new one."""
    folder = os.path.dirname(path)
    handle, unnamed = tempfile.mkstemp(dir=folder, prefix=".writing-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
        os.rename(unnamed, path)
    except BaseException:
        os.unlink(unnamed)
        raise
    flush_folder(folder)


def make_folder(path):
    """Make a folder and its parents. Every user may read them, whatever the umask, because another user's program may serve."""
    if not os.path.isdir(path):
        make_folder(os.path.dirname(path))
        os.mkdir(path)
        os.chmod(path, 0o755)


def is_folder(path):
    return os.path.isdir(path) and not os.path.islink(path)


def remove(path):
    """Remove a file, link or folder. Links are not followed."""
    if is_folder(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


def open_plain(path, flags, mode=0o644):
    """Open a regular file with one name. Raises Failed for links, FIFOs and everything else that could have been put there,
    because opening these could block for ever."""
    try:
        handle = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, mode)
    except OSError as problem:
        if problem.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise Failed("corrupt", "%s is not a regular file" % os.path.basename(path)) from None
        raise
    facts = os.fstat(handle)
    if not stat.S_ISREG(facts.st_mode) or facts.st_nlink != 1:
        os.close(handle)
        raise Failed("corrupt", "%s is not a regular file with one name" % os.path.basename(path))
    return handle


def read_plain(path, limit):
    """The content of a plain file. Raises ValueError if it is longer than any valid one."""
    with os.fdopen(open_plain(path, os.O_RDONLY), "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError("too long")
    return data


def digest_of(path, beat, flush=False):
    """(size, SHA-256) of a plain file."""
    digest, size = hashlib.sha256(), 0
    with os.fdopen(open_plain(path, os.O_RDONLY), "rb") as file:
        if flush:
            os.fsync(file.fileno())
        while True:
            data = file.read(CHUNK)
            if not data:
                return size, digest.hexdigest()
            digest.update(data)
            size += len(data)
            beat()


def is_hash(text):
    return isinstance(text, str) and len(text) == 64 and not set(text) - set("0123456789abcdef")


def is_name(text):
    """Whether `text` is one path component of plain characters, not hidden and not an option."""
    return isinstance(text, str) and 0 < len(text) <= 128 and text[0] not in ".-" and not set(text) - NAME_CHARACTERS


def shown(text, limit=500):
    """Foreign text for a message: printable, and at most `limit` characters."""
    text = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text[:limit])
    return text[:limit]


def is_text(value, limit=1000):
    return isinstance(value, str) and len(value) <= limit and value.isprintable()


def is_count(value):
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def process(pid):
    """[number, start in ticks since boot], which identifies a process even if its number is used again; its parent; its state.
    None if there is none."""
    try:
        with open("/proc/%d/stat" % pid) as file:
            facts = file.read().rpartition(")")[2].split()
        return [pid, int(facts[19])], int(facts[1]), facts[0]
    except (OSError, ValueError, IndexError):
        return None


def user_name(number):
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return "number %d" % number


def open_to_all(folder, names):
    """Make a release readable for every user, because another user's program may serve it."""
    for name in names:
        handle = os.open(os.path.join(folder, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            os.fchmod(handle, 0o755 if stat.S_ISDIR(os.fstat(handle).st_mode) else 0o644)
        finally:
            os.close(handle)
    os.chmod(folder, 0o755)


def now():
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


# ---------------------------------------------------------------- the store


def located(text):
    """The absolute path of a store. Raises Failed if the text does not plainly name one folder."""
    head, _, rest = text.partition("/")
    home = os.path.realpath(os.path.expanduser("~"))
    parts = [part for part in rest.split("/") if part]
    if head not in ("", "~") or not parts or "." in parts or ".." in parts:
        raise Failed("refused", "device.store %s: expected ~/NAME or /PATH/NAME, without . and .. in it" % shown(text))
    path = there = home if head else "/"
    for part in parts:
        path = os.path.join(path, part)
    if os.path.join(home, "").startswith(os.path.join(path, "")):
        raise Failed("refused", "device.store %s is or contains the home folder; choose a separate folder" % shown(text))
    for part in parts:
        there = os.path.join(there, part)
        if os.path.islink(there):
            real = os.path.join(os.path.realpath(there), os.path.relpath(path, there))
            raise Failed("refused", "%s is a link; write the folder it points to: %s" % (there, shown(os.path.normpath(real))))
        if os.path.lexists(there) and not os.path.isdir(there):
            raise Failed("refused", "%s is not a folder; choose another device.store" % there)
    return path


class Store:
    """The folder on the disk. Whoever changes it holds `lock`."""

    def __init__(self, folder):
        self.folder = located(folder)
        self.current = self.path("current")
        self.locked = None

    def path(self, *names):
        return os.path.join(self.folder, *names)

    # ownership of the folder

    def examine(self):
        """Returns "absent", "empty", "marked", or "older" (made before stores were marked). Changes nothing. Raises Failed for a
        folder that this program did not make."""
        there = self.folder
        while not os.path.isdir(there):
            there = os.path.dirname(there)
        owner = os.stat(there).st_uid
        if owner != os.geteuid() and (owner != 0 or there == self.folder):
            raise Failed("refused", "%s belongs to another user, %s; choose a folder of your own" % (there, user_name(owner)))
        if there != self.folder:
            return "absent"
        names = os.listdir(self.folder)
        if all(TEMPORARY.fullmatch(name) for name in names):
            return "empty"  # or nearly empty: making it was interrupted
        if self.is_marked():
            return "marked"
        if self.is_older():
            return "older"
        raise Failed(
            "refused",
            "%s is not empty, and this program did not create it; nothing was changed: choose another folder in device.store"
            % self.folder,
        )

    def is_marked(self):
        try:
            found = json.loads(read_plain(self.path(MARKER), RECORD_BYTES).decode())
            made_by, version = found["made_by"], found["format"]
        except (OSError, Failed, *MALFORMED):
            return False
        if made_by == MARK["made_by"] and isinstance(version, int) and version > FORMAT:
            raise Failed(
                "refused", "%s was created by a newer version of compress; update compress on your machine" % self.folder
            )
        return found == MARK

    def is_older(self):
        """Whether one of our records names an existing release whose manifest has the hash in its name."""
        try:
            named = [each for name in ("state.json", "pending.json") for each in self.named_in(self.read(name))]
            return any(self.foreign_in(each) is not None for each in named)
        except (OSError, Failed):
            return False

    def foreign_in(self, release):
        """The names in a release that were not shipped with it; None if it is not one of our releases."""
        folder = self.path("releases", release)
        if not is_folder(self.path("releases")) or not is_folder(folder):
            return None
        try:
            manifest = read_plain(os.path.join(folder, "manifest.json"), LIMIT_BYTES)
            listed = {"manifest.json", "manifest.sig", "__pycache__", *json.loads(manifest.decode())["files"]}
        except (OSError, Failed, *MALFORMED):
            return None
        return set(os.listdir(folder)) - listed if hashlib.sha256(manifest).hexdigest() == release else None

    def foreign(self):
        """The paths in the store, relative to it, that this program did not make."""
        found = [name for name in sorted(self.names(".")) if not OUR_NAMES.fullmatch(name)]
        for name in sorted(self.names("releases")):
            inside = self.foreign_in(name) if is_hash(name) else None
            found += [os.path.join("releases", name, each) for each in ([""] if inside is None else sorted(inside))]
        found += [os.path.join("incoming", name) for name in sorted(self.names("incoming")) if not self.is_incoming(name)]
        return [shown(each) for each in found[:NAMED_FOREIGN]]

    def is_incoming(self, name):
        return bool(INCOMING.fullmatch(name)) and is_folder(self.path("incoming", name))

    def make(self, kind):
        """Make the store and mark it, or mark one of an earlier version. `kind` is the result of `examine`."""
        make_folder(self.folder)
        if kind != "marked":
            write_whole(self.path(MARKER), json.dumps(MARK).encode())
        for name in ("incoming", "releases"):
            if os.path.lexists(self.path(name)) and not is_folder(self.path(name)):
                raise Failed("refused", "%s is not a folder; move it away" % self.path(name))
            make_folder(self.path(name))
        if kind == "older":  # an earlier version left the modes to the umask
            for folder in (self.folder, self.path("incoming"), self.path("releases")):
                os.chmod(folder, 0o755)
            for name in self.names("releases"):
                foreign = self.foreign_in(name) if is_hash(name) else None
                if foreign is not None:
                    open_to_all(self.path("releases", name), self.names(os.path.join("releases", name)) - foreign)

    # the lock

    def lock(self, wait_s=0.0):
        """Take the lock, and return whether this succeeded. A holder that lost its connection, or was stopped, is killed; this is
        safe at any moment. Only this user may open the lock, so that nobody else can block the store."""
        handle = self.open_own("lock", os.O_RDONLY | os.O_CREAT, 0o600)
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                pass
            if time.monotonic() > deadline:
                os.close(handle)
                return False
            if time.monotonic() > deadline - wait_s / 2 and self.is_orphaned(self.holder()):
                self.break_lock()
            time.sleep(0.05)
        self.locked = handle
        return True

    def is_busy(self):
        """Whether another process holds the lock. Makes no file."""
        try:
            handle = self.open_own("lock", os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
        except OSError:
            return True
        finally:
            os.close(handle)

    def open_own(self, name, flags, mode=0o644):
        """Open a file of the store itself."""
        try:
            return open_plain(self.path(name), flags, mode)
        except Failed as failure:
            raise Failed("refused", "%s; move %s away" % (failure, self.path(name))) from None

    def sign_lock(self):
        """Write into the lock who holds it. On a read-only disk this fails, but then nothing can be changed either."""
        ours = process(os.getpid())
        try:
            with os.fdopen(self.open_own("lock", os.O_WRONLY | os.O_TRUNC), "w") as file:
                json.dump({"process": ours and ours[0], "parent": ours and ours[1]}, file)
        except OSError:
            pass

    def holder(self):
        try:
            found = json.loads(read_plain(self.path("lock"), RECORD_BYTES).decode())
            return found if isinstance(found["process"][0], int) and isinstance(found["parent"], int) else None
        except (OSError, Failed, *MALFORMED):
            return None

    @staticmethod
    def is_orphaned(holder):
        """Whether the holder was stopped, or has lost the process that started it, and so its connection."""
        found = process(holder["process"][0]) if holder else None
        return found is not None and found[0] == holder["process"] and (found[2] in "Tt" or found[1] != holder["parent"])

    def break_lock(self):
        """Kill the holder, if it is still the process that signed the lock."""
        holder = self.holder()
        found = process(holder["process"][0]) if holder else None
        if found is not None and found[0] == holder["process"]:
            os.kill(found[0][0], signal.SIGKILL)

    def unlock(self):
        if self.locked is not None:
            os.close(self.locked)
            self.locked = None

    # records

    def read(self, name):
        """Read a record; None if there is none. A malformed one is renamed, if this process holds the lock."""
        try:
            with os.fdopen(self.open_own(name, os.O_RDONLY), "rb") as file:
                data = file.read(RECORD_BYTES + 1)
            found = json.loads(data.decode()) if len(data) <= RECORD_BYTES else None
            if found["format"] != FORMAT or not self.is_record(found):
                raise ValueError
            return found
        except FileNotFoundError:
            return None
        except MALFORMED:
            if self.locked is not None:
                os.rename(self.path(name), self.path("%s.%s.broken" % (name, secrets.token_hex(4))))
            return None

    @staticmethod
    def is_record(found):
        """Whether every part has the right type, because the record is compared and sent to the other side."""
        if "history" not in found:
            return is_text(found["token"]) and all(each is None or is_hash(each) for each in (found["to"], found["from"]))
        return (found.get("last") is None or is_text(found["last"])) and all(
            is_hash(each["release"])
            and set(each) <= {"release", "name", "version", "at"}
            and all(each.get(key) is None or is_text(each[key]) for key in ("name", "at"))
            and (each.get("version") is None or is_count(each["version"]))
            for each in found["history"]
        )

    @staticmethod
    def named_in(record):
        """The releases that a record names."""
        if record is None:
            return []
        named = [each["release"] for each in record["history"]] if "history" in record else [record["to"], record["from"]]
        return [each for each in named if each is not None]

    def write(self, name, record):
        write_whole(self.path(name), json.dumps(dict(record, format=FORMAT), indent=1).encode())

    def has(self, release):
        return is_folder(self.path("releases", release))

    def recorded(self):
        """The committed releases that still exist, newest first, as recorded."""
        return [each for each in (self.read("state.json") or {}).get("history", ()) if self.has(each["release"])]

    def history(self):
        """The committed releases that still exist, newest first. If no record names one: the release before a started switch, or
        else the serving one, which was committed then."""
        recorded = self.recorded()
        if recorded:
            return recorded
        pending, serving = self.read("pending.json"), self.serving()
        before = pending["from"] if pending else None
        if before is None and serving != (pending and pending["to"]):
            before = serving
        return [{"release": before}] if before and self.has(before) else []

    def committed(self):
        history = self.history()
        return history[0]["release"] if history else None

    def serving(self):
        """The release that `current` points to; None if it points to none."""
        try:
            head, name = os.path.split(os.readlink(self.current))
        except OSError:
            return None
        return name if head == "releases" and is_hash(name) and self.has(name) else None

    # changes

    def point(self, release, link=None):
        """Atomically make `current` point to `release`. `link`: a link that was made before."""
        self.refuse_other_current()
        os.rename(link or self.make_link(release), self.current)
        flush_folder(self.folder)

    def refuse_other_current(self):
        if os.path.lexists(self.current) and not os.path.islink(self.current):
            kind = "folder" if os.path.isdir(self.current) else "file"
            raise Failed("refused", "%s is a %s, not a link; move it away" % (self.current, kind))

    def make_link(self, release, name=None):
        link = self.path(name or ".current-" + secrets.token_hex(8))
        remove(link)
        os.symlink(os.path.join("releases", release), link)
        return link

    def recover(self):
        """Make `current` point to the last committed release. Returns what was done, or None. Taking back a switch needs no disk
        space, because its link was made before."""
        pending, history = self.read("pending.json"), self.history()
        committed = history[0]["release"] if history else None
        message = None
        if history and not self.recorded():
            message = "the record did not match the releases and was written again"
        if pending and pending["to"] != committed:
            message = "the switch to %s was not committed and was undone" % pending["to"][:12]
        if committed != self.serving():
            if committed is None:  # a first release that was switched to and not committed
                os.unlink(self.current)
                flush_folder(self.folder)
            else:
                spare = self.path(".current-back")
                usable = os.path.islink(spare) and os.readlink(spare) == os.path.join("releases", committed)
                self.point(committed, spare if usable else None)
                message = message or "`current` did not point to the committed release and was repaired"
        if os.path.lexists(self.path("pending.json")):
            os.unlink(self.path("pending.json"))
            flush_folder(self.folder)
        for name in os.listdir(self.folder):
            if TEMPORARY.fullmatch(name) and not is_folder(self.path(name)):
                os.unlink(self.path(name))
        if message:
            try:
                self.write("state.json", {"history": history, "last": "%s: %s" % (now(), message)})
            except OSError:
                pass  # the disk is full, and the remark is not essential
        return message

    def leave(self, release):
        """Move a release out of releases/ atomically, so that a partly removed release is never visible there."""
        gone = self.path("incoming", secrets.token_hex(8))
        os.rename(self.path("releases", release), gone)
        return gone

    def prune(self, *also):
        """Remove old releases that are as they were shipped. Releases that hold foreign files are kept."""
        kept = {each["release"] for each in self.history()[:KEPT_RELEASES]} | {self.serving(), *also}
        for name in self.names("releases"):
            if name not in kept and is_hash(name) and self.foreign_in(name) == set():
                remove(self.leave(name))

    def status(self):
        """The status of the store. It also works before anything was shipped."""
        state = self.read("state.json") or {}
        pending = self.read("pending.json")
        there = self.folder
        while not os.path.isdir(there):
            there = os.path.dirname(there)
        disk = os.statvfs(there)
        return {
            "store": self.folder,
            "history": self.history(),
            "current": self.serving(),
            "pending": pending["to"] if pending else None,
            "releases": sorted(name for name in self.names("releases") if is_hash(name)),
            "incoming": sum(self.is_incoming(name) for name in self.names("incoming")),
            "foreign": self.foreign(),
            "last": state.get("last"),
            "free_bytes": disk.f_bavail * disk.f_frsize,
            "architecture": platform.machine(),
            "python": platform.python_version(),
            "interpreter": shown(sys.executable),
        }

    def names(self, folder):
        try:
            return set(os.listdir(self.path(folder)))
        except (FileNotFoundError, NotADirectoryError):
            return set()


# ---------------------------------------------------------------- one shipment


class Shipment:
    def __init__(self, store, answers, silence_s):
        self.store, self.answers, self.silence_s = store, answers, silence_s
        self.files, self.facts = {}, {}
        self.release = self.incoming = self.placed = self.checked = self.pending = None
        self.deadline = 0.0

    def begin(self, request, blob):
        store = self.store
        parts, start = [], 0
        for name, size in request["envelope"]:
            parts.append((name, blob[start : start + size]))
            start += size
        manifest = parts[0][1]
        if hashlib.sha256(manifest).hexdigest() != request["release"] or start != len(blob):
            raise Failed("corrupt", "the received manifest differs from the one that was sent")
        facts = json.loads(manifest.decode())
        files = {name: (facts["files"][name]["size_bytes"], facts["files"][name]["sha256"]) for name in request["names"]}
        files.update((name, (len(data), hashlib.sha256(data).hexdigest())) for name, data in parts)
        for name, (size, digest) in files.items():
            if not is_name(name) or not is_hash(digest) or not is_count(size):
                raise Failed("refused", "the manifest lists an invalid file name, %.60r" % name)
        self.files, self.release = files, request["release"]
        self.facts = {"release": self.release, "name": str(facts["name"]), "version": int(facts["version"])}
        history = store.history()
        if history and self.release == history[0]["release"] and self.is_whole():
            return {"current": True}
        same = history and history[0].get("name") == self.facts["name"]
        if same and self.facts["version"] < (history[0].get("version") or 0):
            serves = history[0]["version"]
            raise Failed(
                "older",
                "version %d is older than the active version %d; to install it anyway, run `compress sign --version %d` and "
                "ship again" % (self.facts["version"], serves, min(serves + 1, LARGEST_VERSION)),
            )
        store.prune(self.release)
        if os.path.lexists(self.folder()):
            if self.is_whole():
                self.placed = self.folder()
                return {"placed": True}
            if not is_folder(self.folder()):
                raise Failed("refused", "%s is not a folder; move it away" % self.folder())
            foreign = sorted(self.listed(self.folder()) - set(files))
            if foreign:
                raise Failed(
                    "refused", "%s contains %s, which was not shipped; move it away" % (self.folder(), shown(foreign[0]))
                )
            if self.release != store.serving():  # otherwise it still serves, although damaged, until a sound one replaces it
                remove(store.leave(self.release))
        self.incoming = self.adopt()
        have = {}
        for name in os.listdir(self.incoming):
            path = os.path.join(self.incoming, name)
            try:
                size, digest = digest_of(path, self.answers.beat) if name in files else (-1, None)
            except Failed:
                size = -1
            if 0 <= size <= files.get(name, (-1,))[0]:
                have[name] = [size, digest]
            else:
                remove(path)
        disk = os.statvfs(self.incoming)
        free = disk.f_bavail * disk.f_frsize
        needed = sum(size - have.get(name, [0])[0] for name, (size, _) in files.items()) + MARGIN_BYTES
        if free < needed:
            raise Failed("storage", "disk full: %d bytes are needed, %d are free in %s" % (needed, free, store.folder))
        for name, data in parts:
            self.put(name, 0, len(data), [data])
        return {"have": have}

    def adopt(self):
        """Make a new folder for the incoming files. It takes over what an interrupted attempt has left."""
        store = self.store
        ours = store.path("incoming", secrets.token_hex(8))
        left = [store.path("incoming", name) for name in store.names("incoming") if store.is_incoming(name)]
        newest = max(left, key=lambda path: os.lstat(path).st_mtime, default=None)
        for path in left:
            if path != newest:
                remove(path)
        if newest:
            os.rename(newest, ours)
            os.utime(ours)
        else:
            make_folder(ours)
        return ours

    def folder(self):
        return self.store.path("releases", self.release)

    def put(self, name, offset, size, pieces):
        """Write each piece as it arrives, so that a lost connection leaves something to continue from."""
        if not 0 <= offset <= offset + size <= self.files[name][0]:
            raise Failed("corrupt", "%s is larger than in the manifest" % name)
        handle, at = open_plain(os.path.join(self.incoming, name), os.O_WRONLY | os.O_CREAT), offset
        try:
            os.ftruncate(handle, offset)
            for piece in pieces:
                view = memoryview(piece)
                while view:
                    count = os.pwrite(handle, view, at)
                    view, at = view[count:], at + count
        finally:
            os.close(handle)
        step("upload")
        return {}

    def verify(self):
        step("verify")
        wrong = self.difference(self.incoming, flush=True)
        if wrong:
            raise Failed("corrupt", wrong)
        flush_folder(self.incoming)
        return {}

    def difference(self, folder, flush=False):
        """The first difference between `folder` and the manifest, or None. A wrong file is removed if it is still arriving."""
        if os.path.islink(folder) or not os.path.isdir(folder):
            return "%s is not a folder" % os.path.basename(folder)
        there = set(os.listdir(folder)) if folder == self.incoming else self.listed(folder)
        for name in sorted(there - set(self.files)):
            if folder == self.incoming:
                remove(os.path.join(folder, name))
            return "%.60r is not in the manifest" % name
        for name, expected in sorted(self.files.items()):
            path = os.path.join(folder, name)
            try:
                if digest_of(path, self.answers.beat, flush) == expected:
                    continue
                problem = "%s differs from the manifest (size or SHA-256)" % name
            except FileNotFoundError:
                problem = "%s is missing" % name
            except Failed as failure:
                problem = str(failure)
            if folder == self.incoming:
                remove(path)
            return problem
        return None

    @staticmethod
    def listed(folder):
        """The names in a release, except what Python compiles when infer.py is imported from there."""
        return set(os.listdir(folder)) - {"__pycache__"}

    def is_whole(self):
        return self.difference(self.folder()) is None

    def place(self):
        step("place")
        try:
            if self.release == self.store.serving():
                self.store.leave(self.release)
            open_to_all(self.incoming, self.files)
            os.rename(self.incoming, self.folder())
        except OSError as problem:
            if problem.errno in (errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY):
                raise Failed("refused", "%s cannot be created: %s" % (self.folder(), problem.strerror)) from None
            raise
        flush_folder(self.store.path("releases"))
        self.placed, self.incoming = self.folder(), None
        step("placed")
        return {}

    def check(self, limit_s, budget):
        step("check")
        if self.placed is None:
            raise Failed("refused", "no release is installed")
        try:
            wrong = self.difference(self.placed)
            if wrong:
                raise Failed("corrupt", wrong)
            found = healthy(self.placed, limit_s, budget, self.answers.beat)
        except Failed:
            if self.release not in [each["release"] for each in self.store.history()]:
                self.store.leave(self.release)  # it becomes invisible, and the next attempt takes it over
            raise
        self.checked = self.release
        return found

    def previous(self):
        history = self.store.history()
        if len(history) < 2 or not os.path.isdir(self.store.path("releases", history[1]["release"])):
            raise Failed("no-previous", "there is no release before the active one")
        self.release, self.facts = history[1]["release"], history[1]
        manifest = os.path.join(self.folder(), "manifest.json")
        with os.fdopen(open_plain(manifest, os.O_RDONLY), "rb") as file:
            text = file.read(LIMIT_BYTES)
        if hashlib.sha256(text).hexdigest() != self.release:
            raise Failed("corrupt", "the manifest of %s differs from the one that was shipped" % self.release[:12])
        listed = json.loads(text.decode())["files"]
        here = self.listed(self.folder())
        self.files = {name: (listed[name]["size_bytes"], listed[name]["sha256"]) for name in here if name in listed}
        # the envelope: the manifest was compared above, and its signature is not used here
        self.files.update(
            (name, digest_of(os.path.join(self.folder(), name), self.answers.beat)) for name in here if name not in listed
        )
        self.placed = self.folder()
        return {"release": self.release}

    def switch(self, deadline_s):
        if self.checked is None or self.checked != self.release:
            raise Failed("refused", "the release was not checked")
        store, before = self.store, self.store.committed()
        store.refuse_other_current()
        token = secrets.token_hex(8)
        if before:
            store.make_link(before, ".current-back")
        self.deadline = time.monotonic() + deadline_s
        self.pending = token
        store.write("pending.json", {"token": token, "to": self.release, "from": before})
        watch(store.folder, token, deadline_s)
        step("switch")
        store.point(self.release)
        step("switched")
        return {}

    def confirm(self, limit_s):
        """Check the release through `current`, as every program on the device uses it."""
        step("confirm")
        if self.store.serving() != self.release:
            raise Failed("unhealthy", "`current` does not point to the release")
        limit_s = min(limit_s, self.deadline - time.monotonic())
        return healthy(self.store.current, limit_s, False, self.answers.beat, runs=0)

    def commit(self):
        store = self.store
        step("commit")
        pending = store.read("pending.json")
        if pending is None or pending["token"] != self.pending or time.monotonic() > self.deadline:
            raise Failed("rolled-back", "no commit arrived before the deadline")
        history = store.history()
        known = [each["release"] for each in history]
        if self.release in known:
            history = history[known.index(self.release) :]
        else:
            history = [dict(self.facts, at=now()), *history][:KEPT_RELEASES]
        store.write("state.json", {"history": history, "last": "%s: %s was committed" % (now(), self.release[:12])})
        step("committed")
        try:
            store.recover()
            store.prune()
        except OSError:
            pass  # it is committed; the next shipment removes the rest
        self.pending = None
        return {"committed": self.release}

    def give_up(self):
        """Roll back immediately if something failed between switch and commit."""
        if self.pending is not None:
            step("rollback")
            self.store.recover()
            self.pending = None


# ---------------------------------------------------------------- the watchdog


def watch(folder, token, deadline_s):
    """Start a process that rolls back if no commit comes."""
    subprocess.Popen(
        [sys.executable, os.path.abspath(__file__), "watch", folder, token, repr(deadline_s)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd="/",
    )


def watchdog(folder, token, deadline_s):
    os.environ.pop("COMPRESS_FAULT", None)
    store, deadline, attempts = Store(folder), time.monotonic() + deadline_s, 0
    while attempts < 100:
        try:
            pending = store.read("pending.json")
            if pending is None or pending["token"] != token:
                return  # it was committed, or another process took it back
            if time.monotonic() < deadline:
                time.sleep(min(0.2, deadline_s / 4))
                continue
            if store.lock(1.0):
                pending = store.read("pending.json")
                if pending is not None and pending["token"] == token:
                    store.recover()
                return
            store.break_lock()  # the holder hangs: a working agent would have rolled back by itself
        except (OSError, Failed):
            pass  # the disk is read-only for now
        attempts += 1
        store.unlock()
        time.sleep(min(0.1 * attempts, 5.0))


# ---------------------------------------------------------------- the health check


def p90_ms(latencies_ms):
    """MLPerf's early-stopping estimate of the 90th percentile, at a confidence of 99 %; None below 64 runs."""
    runs, slower = len(latencies_ms), 0
    chance = term = 0.9**runs  # probability that at most `slower` runs are slower than the true percentile
    while chance <= 0.01:
        slower += 1
        term *= (runs - slower + 1) / slower * 0.1 / 0.9
        chance += term
    return sorted(latencies_ms)[1 - slower] if slower > 1 else None


def healthy(folder, limit_s, budget, beat, runs=FEW_RUNS):
    """The result of checking the release in `folder`, timed over `runs` runs, or over as many as its budget needs. Raises Failed
    with the kind of failure."""
    try:
        with open(os.path.join(folder, "serving.json"), encoding="utf-8") as file:
            limits = json.load(file)["limits"] if budget else {}
        limits = {key: float(limit) for key, limit in limits.items()}
        if not all(math.isfinite(limit) for limit in limits.values()):
            raise ValueError  # no figure would exceed such a limit
    except MALFORMED:
        raise Failed("unhealthy", "load-error: serving.json is malformed") from None
    for attempt in range(ATTEMPTS):
        found = run_health(folder, RUNS if limits else runs, limit_s, beat)
        over = []
        for key, limit in sorted(limits.items()):
            value = found.get(key)
            if value is not None and value > limit:
                over.append("%s is %.6g, but the budget is %.6g" % (key, value, limit))
        if not over:
            return dict(found, attempts=attempt + 1)
    raise Failed("unhealthy", "over-budget: " + "; ".join(over))


def run_health(folder, runs, limit_s, beat):
    """Load and run the release in one process."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as words:
        child = subprocess.Popen(
            [sys.executable, os.path.abspath(__file__), "health", folder, str(runs)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=words,
            start_new_session=True,
        )
        deadline, poll = time.monotonic() + limit_s, select.poll()
        poll.register(0, 0)  # reports only that the other side has gone
        try:
            while child.poll() is None:
                if time.monotonic() > deadline:
                    raise Failed("unhealthy", "timeout: no answer after %g s" % limit_s)
                if poll.poll(20):
                    raise Silence
                beat()
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        output.seek(0)
        words.seek(0)
        try:
            answer = json.loads(output.read(LIMIT_BYTES).decode().strip().split("\n")[-1])
        except ValueError:
            answer = None
        if not isinstance(answer, dict) or not is_failure(answer.get("failure", ["", ""])):
            answer = None
        if child.returncode < 0:
            names = {signal.SIGILL: "illegal-instruction", signal.SIGSEGV: "segfault", signal.SIGKILL: "killed"}
            name = names.get(-child.returncode, "crashed")
            raise Failed("unhealthy", "%s: it ended with %s" % (name, signal.Signals(-child.returncode).name))
        if answer is None:
            last = words.read(LIMIT_BYTES).decode(errors="replace").strip().split("\n")[-1][:LONGEST_DETAIL]
            raise Failed("unhealthy", "crashed: %s" % (last or "it ended with status %d" % child.returncode))
    if "failure" in answer:
        raise Failed("unhealthy", "%s: %s" % tuple(answer["failure"]))
    return answer


def is_failure(value):
    return isinstance(value, list) and len(value) == 2 and all(isinstance(part, str) for part in value)


def health(folder, runs):
    """In a process of its own: load the release with its infer.py, compare, and time it. Prints the result as the last line."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")  # if memory runs out, the system kills this process, not the serving one
    except OSError:
        pass
    try:
        import ctypes

        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))  # PR_SET_PDEATHSIG: die with the parent
    except (ImportError, OSError, AttributeError):
        pass
    sys.stdout, answers = sys.stderr, sys.stdout
    try:
        found = examined(folder, runs)
    except Failed as failure:
        found = {"failure": [failure.kind, str(failure).strip().split("\n")[0][:LONGEST_DETAIL]]}
    print(json.dumps(found), file=answers, flush=True)


def examined(folder, runs):
    sys.dont_write_bytecode = True
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # telemetry would be sent by threads of the timed process
    sys.path.insert(0, folder)
    try:
        import infer
        import numpy

        session = infer.load(pathlib.Path(folder))
    except Exception as problem:
        raise Failed("load-error", "%s: %s" % (type(problem).__name__, problem)) from None
    with open(os.path.join(folder, "serving.json"), encoding="utf-8") as file:
        tolerance = json.load(file)["tolerance"]
    # mapped, so that they do not count as the model's memory
    inputs, outputs = (
        numpy.load(os.path.join(folder, "golden-%s.npy" % each), mmap_mode="r", allow_pickle=False)
        for each in ("inputs", "outputs")
    )

    def sample(array, values, index):
        """One sample by name. Several inputs or outputs are the fields of one structured array."""
        names = [each.name for each in values]
        if sorted(array.dtype.names or names[:1]) != sorted(names):
            raise Failed("run-error", "the golden files are not those of the model, which has %s" % ", ".join(names))
        return {name: numpy.array((array[name] if array.dtype.names else array)[index : index + 1]) for name in names}

    first = sample(inputs, session.get_inputs(), 0)
    for index in range(len(inputs)):
        try:
            answers = session.run(None, sample(inputs, session.get_inputs(), index))
        except Exception as problem:
            raise Failed("run-error", str(problem)) from None
        for (name, expected), found in zip(sample(outputs, session.get_outputs(), index).items(), answers):
            check_output("golden input %d" % index, name if outputs.dtype.names else None, found, expected, tolerance)
    peak = None
    try:
        with open("/proc/self/status") as file:
            peak = next((int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM:")), None)
    except OSError:
        pass
    latencies, began = [], time.perf_counter()
    while len(latencies) < runs and (len(latencies) < 64 or time.perf_counter() - began < RUNS_LIMIT_S):
        start = time.perf_counter_ns()
        session.run(None, first)
        latencies.append((time.perf_counter_ns() - start) / 1e6)
    return {
        "golden_inputs": len(inputs),
        "peak_memory_bytes": peak,
        "runs": len(latencies),
        "latency_p50_ms": sorted(latencies)[len(latencies) // 2] if latencies else None,
        "latency_p90_ms": p90_ms(latencies),
    }


def check_output(what, name, found, expected, tolerance):
    """Compare one output with the expected one. `name` is None if the model has only this output."""
    where = "" if name is None else "output '%s': " % name
    if found.shape != expected.shape:
        raise Failed("wrong-output", "%sshape %s instead of %s" % (where, found.shape, expected.shape))
    if found.dtype.kind in "biu":  # for example classes of pixels, where a tie may differ
        off = float((found != expected).mean()) if found.size else 0.0
    else:
        off = float(abs(found - expected).max() / max(float(abs(expected).max()), 1e-6)) if found.size else 0.0
    if not off <= tolerance:
        raise Failed("wrong-output", "%s%s is off by %.3g %% of the largest output" % (where, what, 100 * off))


# ---------------------------------------------------------------- requests


def serve(client, extra=None):
    answers = Answers()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the other side, which then closes stdin
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(0))
    answers.write({"alive": True})
    shipment = None
    try:
        while True:
            silence_s = shipment.silence_s if shipment else 60.0
            text_size, blob_size = HEADER.unpack(read_exactly(HEADER.size, silence_s))
            if max(text_size, blob_size) > LIMIT_BYTES:
                answers.write({"failure": ["run-error", "a message of %d bytes" % max(text_size, blob_size)]})
                return
            pieces = ()
            try:
                request = json.loads(read_exactly(text_size, silence_s).decode())
                pieces = arriving(blob_size, silence_s, answers)
                if shipment is None:
                    shipment, answer = opened(request, answers)
                    answers.beat_s = min(BEAT_S, shipment.silence_s / 4)
                else:
                    answer = answered(shipment, request, blob_size, pieces)
            except (Failed, OSError) as failure:
                answer = {"failure": failure_of(failure)}
                if shipment is not None:
                    try:
                        shipment.give_up()
                    except OSError:
                        pass  # full or read-only: it is tried again at the end, by the watchdog, and by the next command
            except MALFORMED as problem:
                answers.write({"failure": ["run-error", "malformed request: %.200r" % problem]})
                return
            for _ in pieces:
                pass  # the rest of a refused request is still arriving
            answers.write(answer)
    except (Silence, BrokenPipeError):
        pass
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            if shipment is not None:
                shipment.give_up()
        except OSError:
            pass  # likewise
        if extra:
            shutil.rmtree(extra, ignore_errors=True)


def failure_of(failure):
    if isinstance(failure, Failed):
        return [failure.kind, shown(str(failure))]
    return ["storage", shown("%s%s" % (failure.strerror, ": %s" % failure.filename if failure.filename else ""))]


def opened(request, answers):
    store, recovered = Store(request["store"]), None
    kind = store.examine()
    if request["write"]:
        if kind in ("absent", "empty") and not request["make"]:
            raise Failed("no-previous", "nothing was shipped to %s" % store.folder)
        store.make(kind)
        if not store.lock(LOCK_WAIT_S):
            raise Failed(
                "busy", "another shipment is in progress in %s; if it was killed, the lock is released by itself" % store.folder
            )
        store.sign_lock()
        recovered = store.recover()
    busy = not request["write"] and store.is_busy()
    return Shipment(store, answers, request["silence_s"]), dict(store.status(), recovered=recovered, busy=busy)


def answered(shipment, request, blob_size, pieces):
    do = request["do"]
    if shipment.store.locked is None:
        raise Failed("refused", "the connection is read-only")
    if do == "begin":
        return shipment.begin(request, b"".join(pieces))
    if do == "put":
        return shipment.put(request["name"], request["offset"], blob_size, pieces)
    if do == "check":
        return shipment.check(request["limit_s"], request["budget"])
    if do == "switch":
        return shipment.switch(request["deadline_s"])
    if do == "confirm":
        return shipment.confirm(request["limit_s"])
    if do in ("verify", "place", "previous", "commit"):
        return getattr(shipment, do)()
    raise Failed("run-error", "unknown request %.60r" % do)


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"] and len(sys.argv) in (3, 4):
        serve(*sys.argv[2:4])
    elif sys.argv[1:2] == ["watch"] and len(sys.argv) == 5:
        watchdog(sys.argv[2], sys.argv[3], float(sys.argv[4]))
    elif sys.argv[1:2] == ["health"] and len(sys.argv) == 4:
        health(sys.argv[2], int(sys.argv[3]))
    else:
        sys.exit("usage: agent.py serve CLIENT")
