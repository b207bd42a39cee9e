"""The part of the probe that runs where the figures are taken; one file, alone.

Needs Python >= 3.8, numpy and onnxruntime >= 1.15, nothing else of this package.

    python3 worker.py serve          supervisor: requests on stdin, answers on stdout, until stdin closes
    python3 worker.py child ROLE     one measurement; started by the supervisor, never by hand

A message is  u32 length of the JSON | u64 length of the bytes | JSON | bytes,  big-endian. Requests:

    {"do": "hello"}                                        what this machine is
    {"do": "put", "name": SHA256} + bytes                  keep a file until the end
    {"do": "measure", "reference": SHA256 or null, "input": SHA256, "shape": [...],
     "processes": N, "memory": true or false, "together": true or false, "settings": {...}, "seed": N,
     "answer": N (send the output if it has at most so many values), "more": true or false} + bytes of the model

Every measurement has processes of its own: N that time the model, with the reference interleaved, and one that only
weighs its memory. With "more" they are started ahead, after the answer to the request before, so that importing the
runtime and loading the reference cost nobody's time; a model is only ever run by a process that has run no other model
before. With "together" the processes load the model at the same time; they are timed one after the other in any case.
"""

import hashlib
import json
import os
import platform
import random
import resource
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time

HEADER = struct.Struct(">IQ")
CHUNK = 1 << 20
STARTUP_LIMIT_S = 120.0

# onnxruntime 1.29 and later send telemetry, from threads of their own, out of the very processes that are measured
os.environ["ORT_DISABLE_TELEMETRY"] = "1"


# ---------------------------------------------------------------- messages


def write_message(stream, message, blob=b""):
    text = json.dumps(message).encode()
    stream.write(HEADER.pack(len(text), len(blob)))
    stream.write(text)
    stream.write(blob)
    stream.flush()


def read_exactly(stream, count):
    data = stream.read(count)
    if len(data) < count:
        raise EOFError
    return data


# ---------------------------------------------------------------- the machine


def first_match(path, key):
    """The value behind `key:` in a /proc file; None where there is none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                name, _, value = line.partition(":")
                if name.strip() == key:
                    return value.strip()
    except OSError:
        pass
    return None


def memory_bytes(key, path="/proc/self/status"):
    """A kB figure of /proc in bytes; None where the system has none."""
    value = first_match(path, key)
    return int(value.split()[0]) * 1024 if value else None


def cores():
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def hello():
    import numpy
    import onnxruntime

    model = first_match("/proc/cpuinfo", "model name") or first_match("/proc/cpuinfo", "Model") or platform.processor()
    return {
        "cpu": model or "unknown processor",
        "architecture": platform.machine(),
        "cores": cores(),
        "memory_bytes": memory_bytes("MemTotal", "/proc/meminfo"),
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "onnxruntime": onnxruntime.__version__,
        "providers": onnxruntime.get_available_providers(),
    }


# ---------------------------------------------------------------- one measurement, in its own process


def open_session(path, settings):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = settings["threads"]
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = {
        "disabled": levels.ORT_DISABLE_ALL,
        "basic": levels.ORT_ENABLE_BASIC,
        "extended": levels.ORT_ENABLE_EXTENDED,
        "all": levels.ORT_ENABLE_ALL,
    }[settings["graph_optimization"]]
    options.enable_cpu_mem_arena = settings["arena"]
    options.enable_mem_pattern = settings["memory_pattern"]
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(settings["spinning"])))
    # the reference's threads must not burn the cores while the model is timed, nor the other way round
    options.add_session_config_entry("session.force_spinning_stop", str(int(settings["spinning"])))
    options.add_session_config_entry("session.disable_prepacking", str(int(not settings["prepacking"])))
    options.add_session_config_entry("session.set_denormal_as_zero", str(int(settings["denormal_as_zero"])))
    off = [] if settings["blocked_layout"] else ["NchwcTransformer"]
    return onnxruntime.InferenceSession(path, options, providers=[settings["provider"]], disabled_optimizers=off)


def load_input(job):
    import numpy

    return numpy.fromfile(job["input"], dtype=numpy.float32).reshape(job["shape"])


class Failed(Exception):
    def __init__(self, kind, detail):
        super().__init__(detail)
        self.kind = kind


def first_steps(job, order, feed):
    """Create the session and run it once, each timed."""
    import numpy

    started = time.perf_counter()
    try:
        session = open_session(order["model"], job["settings"])
    except Exception as problem:
        raise Failed("load-error", str(problem)) from None
    created = time.perf_counter()
    try:
        answer = session.run(None, {session.get_inputs()[0].name: feed})[0]
    except Exception as problem:
        raise Failed("run-error", str(problem)) from None
    ran = time.perf_counter()
    if not numpy.isfinite(answer).all():
        raise Failed("wrong-output", "the output is not finite")
    loaded = {
        "session_creation_ms": 1e3 * (created - started),
        "first_run_ms": 1e3 * (ran - created),
        "answer": answer.ravel().tolist() if answer.size <= order["answer"] else None,
    }
    return session, loaded


def run_block(session, name, feed, runs):
    """`runs` timed runs in ms after one that is not counted: the other graph had the caches before."""
    run, clock, inputs = session.run, time.perf_counter_ns, {name: feed}
    run(None, inputs)
    block = []
    for _ in range(runs):
        started = clock()
        run(None, inputs)
        block.append((clock() - started) / 1e6)
    return block


def latency_child(job, pause):
    settings = job["settings"]
    feed = load_input(job)
    reference = open_session(job["reference"], settings) if job["reference"] else None
    order = pause("ready")
    session, loaded = first_steps(job, order, feed)
    pause("loaded", loaded)
    name = session.get_inputs()[0].name
    began = time.perf_counter()
    for each in (reference, session):
        for _ in range(settings["warmup_runs"] if each else 0):
            each.run(None, {each.get_inputs()[0].name: feed})
    import gc

    gc.disable()
    shuffle = random.Random(order["seed"])
    blocks, reference_blocks, cpu_s = [], [], 0.0
    preempted = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
    started = time.perf_counter()
    while len(blocks) * settings["block_runs"] < settings["runs"]:
        turns = ["model"] + (["reference"] if reference else [])
        shuffle.shuffle(turns)
        for turn in turns:
            if turn == "reference":
                reference_blocks.append(run_block(reference, reference.get_inputs()[0].name, feed, settings["block_runs"]))
            else:
                before = time.process_time()
                blocks.append(run_block(session, name, feed, settings["block_runs"]))
                cpu_s += time.process_time() - before
        if time.perf_counter() - started > settings["time_limit_s"]:
            break
    return {
        "latency_ms": blocks,
        "reference_latency_ms": reference_blocks,
        "cpu_ms_per_run": 1e3 * cpu_s / (len(blocks) * (settings["block_runs"] + 1)),
        "preemptions": resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw - preempted,
        "timed_ms": 1e3 * (time.perf_counter() - began),
    }


def memory_child(job, pause):
    feed = load_input(job)
    import onnxruntime  # noqa: F401  (the baseline is a process that is ready to load a model)

    baseline = memory_bytes("VmHWM")
    order = pause("ready")
    session, _ = first_steps(job, order, feed)
    after_session = memory_bytes("VmRSS")
    for _ in range(job["settings"]["warmup_runs"]):
        session.run(None, {session.get_inputs()[0].name: feed})
    return {
        "baseline_bytes": baseline,
        "session_bytes": after_session,
        "peak_bytes": memory_bytes("VmHWM"),
        "rss_bytes": memory_bytes("Rss", "/proc/self/smaps_rollup"),
    }


def child(role):
    """The job on the first line of stdin; then a line out at every pause, and a line in that ends it; the result last."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    job = json.loads(sys.stdin.readline())

    def say(message):
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    def pause(stage, facts=None):
        say(dict(facts or {}, stage=stage))
        line = sys.stdin.readline()
        if not line:
            os._exit(0)  # the supervisor is gone
        return json.loads(line)

    if job["settings"]["cores"] and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, job["settings"]["cores"])
    try:
        result = {"latency": latency_child, "memory": memory_child}[role](job, pause)
    except Failed as failure:
        result = {"failure": [failure.kind, str(failure).strip().split("\n")[0][:300]]}
    say(result)


# ---------------------------------------------------------------- the supervisor


class Child:
    """A process started ahead, waiting for its model."""

    def __init__(self, role, job, folder):
        self.errors = tempfile.TemporaryFile(dir=folder)
        self.buffer = b""
        self.ready = False
        self.process = subprocess.Popen(
            [sys.executable, os.path.abspath(__file__), "child", role],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            start_new_session=True,
        )
        self.send(job)

    def send(self, message):
        try:
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it died; hear() finds out how

    def hear(self, limit_s):
        """Its next message. Raises Failed when it reports a failure, dies, or is silent for too long."""
        deadline = time.monotonic() + limit_s
        poll = select.poll()
        poll.register(self.process.stdout, select.POLLIN)
        poll.register(sys.stdin, 0)  # heard of only when the one who asked has gone
        while b"\n" not in self.buffer:
            events = dict(poll.poll(1e3 * max(0.0, deadline - time.monotonic())))
            if sys.stdin.fileno() in events:
                raise EOFError
            if not events:
                raise Failed("timeout", "no answer after %g s" % limit_s)
            data = os.read(self.process.stdout.fileno(), 1 << 16)
            if not data:
                raise self.death()
            self.buffer += data
        line, _, self.buffer = self.buffer.partition(b"\n")
        message = json.loads(line.decode())
        if "failure" in message:
            raise Failed(message["failure"][0], message["failure"][1])
        return message

    def wait_until_ready(self):
        if not self.ready:
            self.hear(STARTUP_LIMIT_S)
            self.ready = True

    def death(self):
        """How it ended, as one of the named verdicts."""
        try:
            status = self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.kill()
            return Failed("crashed", "it closed its output and stayed")
        self.errors.seek(0)
        last = self.errors.read().decode(errors="replace").strip().split("\n")[-1][:300]
        if status == -signal.SIGKILL:
            return Failed("killed", "killed by the system, most likely for lack of memory")
        if status == -signal.SIGILL:
            return Failed("illegal-instruction", "this build of onnxruntime uses instructions that the processor lacks")
        if status in (-signal.SIGSEGV, -signal.SIGBUS):
            return Failed("segfault", last or "segmentation fault")
        return Failed("crashed", last or "exit status %d" % status)

    def kill(self):
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.errors):
            try:
                stream.close()
            except BrokenPipeError:
                pass


class Supervisor:
    def __init__(self, folder):
        self.folder = folder
        self.waiting = []
        self.finished = []
        self.key = None

    def path(self, name):
        if len(name) != 64 or set(name) - set("0123456789abcdef"):
            raise Failed("run-error", "not a SHA-256: %r" % name)
        return os.path.join(self.folder, name)

    def put(self, name, stream, size):
        digest, unnamed = hashlib.sha256(), os.path.join(self.folder, "unnamed")
        self.receive(unnamed, stream, size, digest.update)
        if digest.hexdigest() != name:
            os.unlink(unnamed)
            raise Failed("run-error", "the bytes do not match their name")
        os.rename(unnamed, self.path(name))
        return {}

    def receive(self, path, stream, size, also=lambda data: None):
        """Straight to the file, so that this process stays small. The stream is read to the end in any case."""
        problem = None
        try:
            file = open(path, "wb")
        except OSError as error:
            file, problem = None, error
        while size:
            data = read_exactly(stream, min(size, CHUNK))
            size -= len(data)
            also(data)
            try:
                if problem is None:
                    file.write(data)
            except OSError as error:
                problem = error
        try:
            if file:
                file.close()
        except OSError as error:
            problem = problem or error
        if problem is not None:
            if os.path.exists(path):
                os.unlink(path)
            raise Failed("not-kept", problem.strerror)

    def measure(self, request, stream, size):
        model = os.path.join(self.folder, "model.onnx")
        self.receive(model, stream, size)
        self.start_ahead(request)
        if any(each.process.poll() is not None for _, each in self.waiting):
            self.stop()  # one died while it waited: not this model's doing
            self.start_ahead(request)
        memory = [each for role, each in self.waiting if role == "memory"]
        latency = [each for role, each in self.waiting if role == "latency"]
        self.finished, self.waiting, self.key = self.waiting, [], None
        limit_s = request["settings"]["timeout_s"]
        order = {"model": model, "answer": request["answer"], "seed": request["seed"]}
        for each in memory + latency:
            each.wait_until_ready()  # none may still be starting while another is timed
        result = {"processes": [], "memory": None}
        for each in memory:
            each.send(order)
            result["memory"] = each.hear(limit_s)
        loaded = []
        for group in [latency] if request["together"] else [[each] for each in latency]:
            for index, each in enumerate(group, start=len(loaded)):
                each.send(dict(order, seed=order["seed"] + index))
            loaded += [each.hear(limit_s) for each in group]
            for each in group:
                each.send({})
                timed = each.hear(limit_s)
                timed.update(loaded[len(result["processes"])])
                result["processes"].append(timed)
        return result

    def start_ahead(self, request):
        """Have the processes for such a request waiting; those for another kind of request are ended."""
        key = {name: request[name] for name in ("reference", "input", "shape", "processes", "memory", "settings")}
        if key != self.key:
            self.stop()
            job = {
                "reference": self.path(key["reference"]) if key["reference"] else None,
                "input": self.path(key["input"]),
                "shape": key["shape"],
                "settings": key["settings"],
            }
            roles = ["memory"] * key["memory"] + ["latency"] * key["processes"]
            self.waiting = [(role, Child(role, job, self.folder)) for role in roles]
            self.key = key

    def clear(self):
        """End the processes of the last measurement; after it was answered, because that takes a while."""
        for _, each in self.finished:
            each.kill()
        self.finished = []

    def stop(self):
        self.clear()
        for _, each in self.waiting:
            each.kill()
        self.waiting, self.key = [], None


def serve():
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not end up between the messages
    requests = sys.stdin.buffer
    folder = tempfile.mkdtemp(prefix="compress-probe-")
    supervisor = Supervisor(folder)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who asked; it closes stdin
    try:
        while True:
            text_size, blob_size = HEADER.unpack(read_exactly(requests, HEADER.size))
            request = json.loads(read_exactly(requests, text_size).decode())
            try:
                if request["do"] == "hello":
                    answer = hello()
                elif request["do"] == "put":
                    answer = supervisor.put(request["name"], requests, blob_size)
                elif request["do"] == "measure":
                    answer = supervisor.measure(request, requests, blob_size)
                else:
                    answer = {"failure": ["run-error", "unknown request %r" % request["do"]]}
            except Failed as failure:
                answer = {"failure": [failure.kind, str(failure)]}
            write_message(answers, answer)
            supervisor.clear()
            if request["do"] == "measure" and request["more"]:
                supervisor.start_ahead(request)
    except (EOFError, BrokenPipeError):
        pass
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        supervisor.stop()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        serve()
    elif sys.argv[1:2] == ["child"] and sys.argv[2:] in (["latency"], ["memory"]):
        child(sys.argv[2])
    else:
        sys.exit("usage: worker.py serve")
