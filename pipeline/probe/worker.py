"""The part of the probe that runs on the measured machine, as a single file.

It needs Python >= 3.8, numpy and onnxruntime >= 1.15, and nothing else of this package.

    python3 worker.py serve [CLIENT]   supervisor: requests on stdin, answers on stdout, until stdin closes
                                       (on a device, bootstrap.py first writes this text into the cache folder)
    python3 worker.py versions         installed versions; in its own process, because an import can crash
    python3 worker.py child ROLE       one measurement; started by the supervisor, never by hand

A message is  u32 length of the JSON | u64 length of the bytes | JSON | bytes,  big-endian. While an answer is being
prepared, {"alive": true} is sent every five seconds; on a device also once at the start. While the bytes of a request
arrive, it is {"alive": true, "received": N}, with the number of bytes so far. Requests:

    {"do": "hello"}                                        facts about this machine
    {"do": "state"}                                        its present temperature, clock and load
    {"do": "put", "name": SHA256} + bytes                  keep a file until the end
    {"do": "base", "name": SHA256, "tensors": [...]} + bytes   keep the base weights, which weight slices cut
    {"do": "make", "name": SHA256, "slices": {...}} + bytes    make an ONNX file from weight slices and keep it
    {"do": "measure", "reference": SHA256 or null, "inputs": [{"name": SHA256, "dtype": "float32", "shape": [...]}],
     "slices": {...} or null, "processes": N, "memory": true or false, "together": true or false, "settings": {...}, "seed": N,
     "answer": N (send the outputs if they have at most N values), "more": true or false}
     + bytes of the model or the slices
    {"do": "profile", "inputs": [...], "slices": {...} or null, "runs": N, "settings": {...}}
     + bytes of the model or the slices               how long each node takes, in a process and in runs of its own

Every measurement uses new processes: N that time the model in turn with the reference, and one that measures its
memory. With "more", the processes for the next measurement are started after this answer, so that importing the
runtime and loading the reference take no extra time. No process ever runs a second model. With "together", the
processes load the model at the same time; they are always timed one after the other.

The inputs are in the order of the model's inputs. Clients of older versions send one float32 input as "input": SHA256,
"shape": [...]. The answer holds the values of all outputs, one output after the other.
"""

import bisect
import errno
import fcntl
import glob
import hashlib
import json
import os
import platform
import random
import resource
import select
import shutil
import signal
import stat
import struct
import subprocess
import sys
import tempfile
import time
import zlib

HEADER = struct.Struct(">IQ")
CHUNK = 1 << 20
CPU = "CPUExecutionProvider"
STARTUP_LIMIT_S = 120.0
BEAT_S = 5.0
LONGEST_TEXT_BYTES = 64 << 20
PLUGINS = {"OpenVINOExecutionProvider": "onnxruntime_ep_openvino"}  # packages that bring a provider as a library of its own
LONGEST_DETAIL = 20000  # characters of a library's message; the client shortens it and keeps both its ends
MALFORMED = (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, MemoryError, RecursionError, zlib.error)

# onnxruntime 1.29 and later send telemetry from extra threads, which would run inside the measured processes
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


def arriving(stream, size):
    """Yield the next `size` bytes of the stream in pieces, as they arrive. The client is sent how many have arrived."""
    received, reported = 0, time.monotonic()
    while received < size:
        data = stream.read1(min(size - received, CHUNK))
        if not data:
            raise EOFError
        received += len(data)
        if received < size and time.monotonic() - reported >= BEAT_S:
            Child.beat(received)
            reported = time.monotonic()
        yield data


# ---------------------------------------------------------------- the machine


def first_match(path, key):
    """The value after `key:` in a /proc file; None if there is none."""
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
    """A figure in kB from /proc, in bytes; None if the system does not report it."""
    value = first_match(path, key)
    return int(value.split()[0]) * 1024 if value else None


def cores():
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def text_of(path):
    """The text of a small file in /proc or /sys; None if there is none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip("\0 \n") or None
    except OSError:
        return None


def number_of(path):
    try:
        return int(text_of(path) or "")
    except ValueError:
        return None


def said(*arguments):
    """The output of a program on the device; None if it is not installed or fails."""
    path = shutil.which(arguments[0])
    if path is None:
        return None
    try:
        done = subprocess.run([path, *arguments[1:]], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace").strip() or None


def hello(folder):
    """Facts about the machine and the installed software."""
    model = first_match("/proc/cpuinfo", "model name") or platform.processor()
    identity = text_of("/etc/machine-id") or text_of("/proc/device-tree/serial-number") or platform.node()
    disk = os.statvfs(folder)
    facts = {
        "board": text_of("/proc/device-tree/model"),
        "cpu": text_of("/proc/device-tree/model") or model or first_match("/proc/cpuinfo", "Model") or "unknown processor",
        "architecture": platform.machine(),
        "cores": cores(),
        "machine_cores": os.cpu_count(),
        "memory_bytes": memory_bytes("MemTotal", "/proc/meminfo"),
        "free_memory_bytes": memory_bytes("MemAvailable", "/proc/meminfo"),
        "free_disk_bytes": disk.f_bavail * disk.f_frsize,
        "folder": folder,
        "machine": hashlib.sha256(identity.encode()).hexdigest()[:12],
        "system": "%s %s" % (platform.system(), platform.release()),
        "python": platform.python_version(),
        "interpreter": sys.executable,
    }
    facts.update(installed())
    return facts


def installed():
    """Versions of numpy and onnxruntime. If one of them cannot be imported, a failure with the reason and the installed
    version of onnxruntime."""
    done = subprocess.run(
        [sys.executable, os.path.abspath(__file__), "versions"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        check=False,
    )
    version = distribution("onnxruntime")["version"]
    if done.returncode == -signal.SIGILL:
        detail = "this build of onnxruntime uses instructions that the processor lacks"
        return {"failure": ["illegal-instruction", detail], "onnxruntime": version}
    lines = done.stdout.decode(errors="replace").strip().split("\n")
    try:
        return json.loads(lines[-1])
    except ValueError:
        words = done.stderr.decode(errors="replace").strip().split("\n")[-1][:LONGEST_DETAIL]
        detail = words or "importing onnxruntime ended with status %d" % done.returncode
        return {"failure": ["not-installed", detail], "onnxruntime": version}


def distribution(package):
    """Version and wheel tag (Python, ABI, platform) of a package, without importing it; None if it has no metadata or no
    tag."""
    try:
        from importlib import metadata

        found = metadata.distribution(package)
        version, lines = found.version, (found.read_text("WHEEL") or "").splitlines()
    except Exception:
        return {"version": None, "wheel": None}
    tags = (line.partition(":")[2].strip() for line in lines if line.startswith("Tag:"))
    return {"version": version, "wheel": next(tags, None)}


def versions():
    import numpy
    import onnxruntime

    facts = {"numpy": numpy.__version__, "onnxruntime": onnxruntime.__version__}
    facts["providers"] = onnxruntime.get_available_providers()
    facts["unusable"] = {}
    for provider in PLUGINS:
        try:
            if plugin_device(provider) and provider not in facts["providers"]:
                facts["providers"].append(provider)
        except ImportError:
            pass  # the package is not installed
        except Exception as problem:
            facts["unusable"][provider] = str(problem).strip().split("\n")[0][:LONGEST_DETAIL]
    facts["wheel"] = distribution("onnxruntime")["wheel"]
    print(json.dumps(facts))


def control_groups(root=""):
    """(folder, version) of each control group that limits the processor time of this process: its own and its ancestors.
    `root` is the folder that contains /proc and /sys."""
    mounts = []
    for line in (text_of(root + "/proc/self/mountinfo") or "").split("\n"):
        place, _, kind = line.partition(" - ")
        place, kind = place.split(), kind.split()
        if len(place) < 5 or len(kind) < 3:
            continue
        if kind[0] == "cgroup2":
            mounts.append((2, place[3], place[4]))
        elif kind[0] == "cgroup" and "cpu" in kind[2].split(","):
            mounts.append((1, place[3], place[4]))
    found = []
    for line in (text_of(root + "/proc/self/cgroup") or "").split("\n"):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        version = 2 if number == "0" and not controllers else 1 if "cpu" in controllers.split(",") else None
        for kind, top, mount in mounts:
            if kind != version:
                continue
            # in a container, the mount starts at its own group, but the path in /proc may start outside the container
            below = path[len(top.rstrip("/")) :] if (path + "/").startswith(top.rstrip("/") + "/") else ""
            folder = mount + below.rstrip("/")
            while len(folder) >= len(mount):
                found.append((root + folder, version))
                folder = os.path.dirname(folder)
    return found


def processor_limits(root=""):
    """Limits by control groups: the smallest quota in cores, and how often and how long they stopped their processes. None where
    there is no quota or the system does not report it."""
    quotas, periods, stopped_ms = [], [], []
    for folder, version in control_groups(root):
        if version == 2:
            quota, _, period = (text_of(folder + "/cpu.max") or "").partition(" ")
        else:
            quota, period = (text_of(folder + "/cpu.cfs_%s_us" % name) or "" for name in ("quota", "period"))
        if quota.isdigit() and period.isdigit() and int(period):
            quotas.append(int(quota) / int(period))
        lines = (line.split() for line in (text_of(folder + "/cpu.stat") or "").split("\n"))
        counts = {line[0]: int(line[1]) for line in lines if len(line) == 2 and line[1].isdigit()}
        if "nr_throttled" in counts:
            periods.append(counts["nr_throttled"])
            stopped_ms.append(counts.get("throttled_usec", 0) / 1e3 + counts.get("throttled_time", 0) / 1e6)
    return {
        "quota_cores": min(quotas) if quotas else None,
        "quota_stops": sum(periods) if periods else None,
        "quota_stopped_ms": sum(stopped_ms) if periods else None,
    }


def core_times_ms(cores):
    """(busy, stolen) in ms since boot, summed over these cores: the time in which they computed for any program, and the time in
    which a hypervisor ran other machines. None if the system does not report it."""
    busy, stolen, found = 0, 0, False
    for line in (text_of("/proc/stat") or "").split("\n"):
        words = line.split()
        if len(words) > 8 and words[0][:3] == "cpu" and words[0][3:].isdigit() and int(words[0][3:]) in cores:
            user, nice, system, _, _, interrupts, soft_interrupts, elsewhere = (int(word) for word in words[1:9])
            busy, stolen, found = busy + user + nice + system + interrupts + soft_interrupts, stolen + elsewhere, True
    tick_ms = 1e3 / os.sysconf("SC_CLK_TCK")
    return (busy * tick_ms, stolen * tick_ms) if found else None


def state():
    """Temperature, clock and load of the machine; None for what it does not report."""
    temperatures = [number_of(path) for path in glob.glob("/sys/class/thermal/thermal_zone*/temp")]
    temperatures = [each / 1000.0 for each in temperatures if each is not None and each > 0]
    clocks = [number_of(path) for path in glob.glob("/sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq")]
    clocks = [each / 1000.0 for each in clocks if each]
    clock, measured = (sum(clocks) / len(clocks) if clocks else None), False
    answer = said("vcgencmd", "measure_clock", "arm")  # the real clock; scaling_cur_freq is the requested one
    if answer and answer.rpartition("=")[2].isdigit():
        clock, measured = int(answer.rpartition("=")[2]) / 1e6, True
    flags = (said("vcgencmd", "get_throttled") or "").rpartition("=")[2] or text_of(
        "/sys/devices/platform/soc/soc:firmware/get_throttled"
    )
    try:
        flags = int(flags, 16) if flags else None
    except ValueError:
        flags = None
    counts = [number_of(path) for path in glob.glob("/sys/devices/system/cpu/cpu*/thermal_throttle/core_throttle_count")]
    facts = {
        "temperature_c": max(temperatures) if temperatures else None,
        "clock_mhz": clock,
        "clock_measured": measured,
        "governor": text_of("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "throttle_flags": flags,
        "throttle_count": sum(each for each in counts if each) if counts else None,
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "free_memory_bytes": memory_bytes("MemAvailable", "/proc/meminfo"),
    }
    facts.update(processor_limits())
    return facts


# ---------------------------------------------------------------- weight slices: a few kilobytes instead of a file


def varint(number):
    """A number in protobuf's encoding."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def field(number, length):
    """The header of a protobuf field of `length` bytes."""
    return varint(number << 3 | 2) + varint(length)


def assemble(path, slices, blob, base, tensors):
    """Write the ONNX file of the weight slices. Protobuf fields: ModelProto.graph is 7, GraphProto.initializer
    is 5; in TensorProto, dims is 1, data_type 2, name 8 and raw_data 9."""
    import numpy

    plain = zlib.decompress(blob)
    model, graph = plain[: slices["model_bytes"]], plain[slices["model_bytes"] :]
    stays = []
    for size, bits in slices["masks"]:
        stays.append(numpy.flatnonzero(numpy.unpackbits(numpy.frombuffer(bytes.fromhex(bits), numpy.uint8))[:size]))
    if len(tensors) != len(slices["cuts"]):
        raise ValueError("%d tensors, cuts for %d" % (len(tensors), len(slices["cuts"])))
    parts, length = [], len(graph)
    for (name, kind, dtype, shape, offset), cuts in zip(tensors, slices["cuts"]):
        if cuts is None:
            continue  # the tensor belongs to a block that is dropped
        values = numpy.ndarray(shape, dtype, base, offset)
        for axis, mask in cuts:
            values = values.take(stays[mask], axis)
        values = numpy.ascontiguousarray(values).reshape(values.shape)
        header = b"".join(b"\x08" + varint(size) for size in values.shape) + b"\x10" + varint(kind)
        header += field(8, len(name.encode())) + name.encode() + field(9, values.nbytes)
        header = field(5, len(header) + values.nbytes) + header
        length += len(header) + values.nbytes
        parts.append((header, values))
    with open(path, "wb") as file:
        file.write(model + field(7, length) + graph)
        for header, values in parts:
            file.write(header)
            file.write(values.data if values.ndim else values.tobytes())


# ---------------------------------------------------------------- one measurement, in its own process


class Failed(Exception):
    def __init__(self, kind, detail):
        super().__init__(detail)
        self.kind = kind


def is_plugin(provider):
    """Whether this provider comes from a package beside onnxruntime. One that was registered before is among the available
    providers, too, but a session cannot be created with its name."""
    import onnxruntime

    if provider not in PLUGINS:
        return False
    registered = [each.ep_name for each in onnxruntime.get_ep_devices()] if hasattr(onnxruntime, "get_ep_devices") else []
    return provider in registered or provider not in onnxruntime.get_available_providers()


def plugin_device(provider):
    """The processor on which the provider of a plugin package computes. Its library is registered once in a process. Raises
    ImportError if the package is not installed."""
    import importlib

    package = importlib.import_module(PLUGINS[provider])
    import onnxruntime

    def processors():
        kind = onnxruntime.OrtHardwareDeviceType.CPU
        return [each for each in onnxruntime.get_ep_devices() if each.ep_name == provider and each.device.type == kind]

    if not processors():
        onnxruntime.register_execution_provider_library(provider, package.get_library_path())
    found = processors()
    if not found:
        raise Failed("load-error", "%s supports no processor of this machine" % provider)
    return found[0]


def open_session(path, settings, beside=False, profile=None):
    """Create a session, or raise Failed. `beside`: another session in this process is timed in turn with it. `profile`: beginning
    of the name of the file into which the runtime writes how long each node takes."""
    try:
        session = new_session(path, settings, beside, profile)
    except Failed:
        raise
    except Exception as problem:
        if "fallback to CPU EP has been explicitly disabled" in str(problem):
            raise Failed("fallback", "%s does not run every node" % settings["provider"]) from None
        raise Failed("load-error", str(problem)) from None
    if settings["provider"] not in session.get_providers():
        raise Failed("fallback", "the runtime does not use %s" % settings["provider"])
    return session


def new_session(path, settings, beside, profile):
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
    # spinning threads of one session would disturb the timed runs of the other; with a single session they may spin,
    # because waking stopped threads costs time in the next run
    options.add_session_config_entry("session.force_spinning_stop", str(int(settings["spinning"] and beside)))
    options.add_session_config_entry("session.disable_prepacking", str(int(not settings["prepacking"])))
    options.add_session_config_entry("session.set_denormal_as_zero", str(int(settings["denormal_as_zero"])))
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, profile
    provider = settings["provider"]
    if provider != CPU and not settings.get("allow_fallback"):
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    if is_plugin(provider):
        options.add_provider_for_devices([plugin_device(provider)], settings.get("provider_options", {}))
        providers = None
    else:
        providers = [(provider, settings.get("provider_options", {}))]
    off = [] if settings["blocked_layout"] else ["NchwcTransformer"]
    # otherwise a provider that fails is silently replaced by another one, here and in later runs
    session = onnxruntime.InferenceSession(path, options, providers=providers, disabled_optimizers=off, enable_fallback=0)
    session.disable_fallback()
    return session


def load_inputs(job):
    import numpy

    return [numpy.fromfile(each["path"], dtype=each["dtype"]).reshape(each["shape"]) for each in job["inputs"]]


def feed_of(session, arrays):
    """The inputs of a session by name."""
    names = [each.name for each in session.get_inputs()]
    if len(names) != len(arrays):
        raise Failed("run-error", "the model has %d inputs (%s), got %d" % (len(names), ", ".join(names), len(arrays)))
    return dict(zip(names, arrays))


def first_steps(job, order, arrays, beside=False, profile=None):
    """Create the session and run it once; time both steps. Returns the session, its feed, and what was found."""
    import numpy

    started = time.perf_counter()
    session = open_session(order["model"], job["settings"], beside, profile)
    created = time.perf_counter()
    feed = feed_of(session, arrays)
    try:
        answers = session.run(None, feed)
    except Exception as problem:
        raise Failed("run-error", str(problem)) from None
    ran = time.perf_counter()
    # other outputs, such as sequences and texts, are not compared
    numbers = [each for each in answers if isinstance(each, numpy.ndarray) and each.dtype.kind in "fiub"]
    if not all(numpy.isfinite(each).all() for each in numbers if each.dtype.kind == "f"):
        raise Failed("wrong-output", "the output is not finite")
    few = len(numbers) == len(answers) and sum(each.size for each in numbers) <= order["answer"]
    loaded = {
        "session_creation_ms": 1e3 * (created - started),
        "first_run_ms": 1e3 * (ran - created),
        "answer": [float(value) for each in numbers for value in each.ravel().tolist()] if few else None,
    }
    return session, feed, loaded


class Losses:
    """Measures how much time of each run was lost because ready threads did not get a core.

    With a single computing thread, it is the elapsed time minus the processor time. Otherwise it is the time in which threads
    of this process waited for a core. If the system does not report waiting times, a run in which a thread was preempted
    counts as completely lost.
    """

    def __init__(self, settings):
        """Call this after all threads were started."""
        # other providers compute in another thread or on another processor
        self.alone = settings["threads"] == 1 and settings["provider"] == CPU
        self.files, self.runs = [], []
        if not self.alone:
            try:
                self.files = [os.open(path, os.O_RDONLY) for path in glob.glob("/proc/self/task/[0-9]*/schedstat")]
            except OSError:
                pass  # preemptions are counted instead

    def spent(self):
        """A counter in ns, or of preemptions. Only the difference between two calls has a meaning; see `lost`."""
        if self.alone:
            return time.thread_time_ns()
        if self.files:
            return sum(int(os.pread(file, 64, 0).split()[1]) for file in self.files)
        return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw

    def note(self, began, ended, before, after):
        self.runs.append((began, ended, before, after))

    def lost(self):
        """Lost time of each noted run in ns, in order."""
        if self.alone:
            return [max(0, ended - began - (after - before)) for began, ended, before, after in self.runs]
        if not self.files:
            return [ended - began if after > before else 0 for began, ended, before, after in self.runs]
        return waits_to_losses(self.runs)


def waits_to_losses(runs):
    """Lost time of each run in ns. The system counts a wait only when it ends, so each wait is spread backwards over its
    length, which may cover several runs. `runs`: (start, end, total wait at start, total wait at end) in order, all in ns."""
    losses, since, waited_before = [], float("inf"), [0] + [after for _, _, _, after in runs]
    if runs:
        waited_before[0] = runs[0][2]
    for (began, ended, _, after), before in reversed(list(zip(runs, waited_before))):
        if after > before:
            since = min(since, ended - (after - before))
        losses.append(max(0, min(ended - began, ended - since)))
    return losses[::-1]


def run_block(session, inputs, runs, period_s, losses):
    """Latencies in ms of `runs` runs. One run before them is not timed, because the other graph has filled the caches. With a
    period, runs start at this interval, as with a camera, and the machine idles in between. Runs are noted in `losses`."""
    run, clock, spent = session.run, time.perf_counter_ns, losses.spent
    run(None, inputs)
    block, due = [], time.perf_counter()
    for _ in range(runs):
        if period_s:
            due = max(due + period_s, time.perf_counter())
            time.sleep(max(0.0, due - time.perf_counter()))
        before = spent()
        began = clock()
        run(None, inputs)
        ended = clock()
        losses.note(began, ended, before, spent())
        block.append((ended - began) / 1e6)
    return block


def latency_child(job, pause):
    settings = job["settings"]
    arrays = load_inputs(job)
    try:
        reference = open_session(job["reference"], settings, beside=True) if job["reference"] else None
    except Failed as failure:
        raise Failed(failure.kind, "the reference: %s" % failure) from None
    order = pause("ready")
    session, feed, loaded = first_steps(job, order, arrays, beside=reference is not None)
    pause("loaded", loaded)
    feeds = {session: feed}
    if reference:
        feeds[reference] = feed_of(reference, arrays)
    began = time.perf_counter()
    for each, inputs in feeds.items():
        for _ in range(settings["warmup_runs"]):
            each.run(None, inputs)
    import gc

    gc.disable()
    shuffle = random.Random(order["seed"])
    block_runs, period_s, sustain_s = settings["block_runs"], settings["period_ms"] / 1e3, settings["sustain_s"]
    blocks, reference_blocks, course, cpu_s = [], [], [], 0.0
    losses, between, of_reference = Losses(settings), Losses(settings), []
    machine, own_s = core_times_ms(cores()), time.process_time()
    preempted = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
    started = time.perf_counter()
    while True:
        turns = list(feeds)
        shuffle.shuffle(turns)
        for turn in turns:
            before = time.process_time()
            block = run_block(turn, feeds[turn], block_runs, period_s, losses)
            of_reference += [turn is reference] * block_runs
            if turn is reference:
                reference_blocks.append(block)
            else:
                blocks.append(block)
                cpu_s += time.process_time() - before
        elapsed = time.perf_counter() - started
        if sustain_s:
            # between the recorded blocks, a hundred of them, the model keeps running
            course.append([round(elapsed, 3), state()["temperature_c"]])
            while time.perf_counter() - started < min(sustain_s, len(blocks) * sustain_s / 100):
                run_block(session, feed, 1, period_s, between)
                between.runs.clear()
            if time.perf_counter() - started >= sustain_s:
                break
        elif len(blocks) * block_runs >= settings["runs"] or elapsed > settings["time_limit_s"]:
            break
    timed_ms = 1e3 * (time.perf_counter() - began)
    now, own_s = core_times_ms(cores()), time.process_time() - own_s
    busy_ms, stolen_ms = (now[0] - machine[0], now[1] - machine[1]) if now and machine else (None, None)
    lost_ms = {False: [], True: []}
    for reference_ran, lost_ns in zip(of_reference, losses.lost()):
        lost_ms[reference_ran].append(lost_ns / 1e6)

    def in_blocks(runs):
        return [runs[start : start + block_runs] for start in range(0, len(runs), block_runs)]

    return {
        "latency_ms": blocks,
        "reference_latency_ms": reference_blocks,
        "lost_ms": in_blocks(lost_ms[False]),
        "reference_lost_ms": in_blocks(lost_ms[True]),
        "foreign_ms": None if busy_ms is None else max(0.0, busy_ms - 1e3 * own_s),
        "stolen_ms": None if stolen_ms is None else max(0.0, stolen_ms),
        "course": course,
        "cpu_ms_per_run": 1e3 * cpu_s / (len(blocks) * (block_runs + 1)),
        "preemptions": resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw - preempted,
        "timed_ms": timed_ms,
    }


def memory_child(job, pause):
    arrays = load_inputs(job)
    import onnxruntime  # noqa: F401  (the baseline is a process that is ready to load a model)

    baseline = memory_bytes("VmHWM")
    order = pause("ready")
    session, feed, _ = first_steps(job, order, arrays)
    after_session = memory_bytes("VmRSS")
    for _ in range(job["settings"]["warmup_runs"]):
        session.run(None, feed)
    return {
        "baseline_bytes": baseline,
        "session_bytes": after_session,
        "peak_bytes": memory_bytes("VmHWM"),
        "rss_bytes": memory_bytes("Rss", "/proc/self/smaps_rollup"),
    }


def profile_child(job, pause):
    """Run the model with the runtime's profiler. It slows the runs, so they are no latencies."""
    arrays = load_inputs(job)
    order = pause("ready")
    started, prefix = time.perf_counter(), os.path.join(job["folder"], "profile")
    session, feed, _ = first_steps(job, order, arrays, profile=prefix)
    for _ in range(order["runs"] - 1):
        if time.perf_counter() - started > job["settings"]["time_limit_s"]:
            break
        session.run(None, feed)
    path = session.end_profiling()
    with open(path, encoding="utf-8", errors="replace") as file:
        nodes = node_times(profiled(file))
    os.unlink(path)
    return {"nodes": nodes}


def profiled(lines):
    """Yield the events in a file of onnxruntime's profiler. It has one event on each line, and can be too large to be read as a
    whole on a small device."""
    for line in lines:
        event = line.strip().strip(",[]")
        if event:
            yield json.loads(event)


def node_times(events):
    """[name, operator, provider, ms] of each node in the order of its first run. The time is that of the fastest run, which other
    programs disturbed least. It includes no nodes that ran inside, such as those of a loop.

    `events`: those of onnxruntime's profiler, with times in us."""
    starts, spans = [], []
    for each in events:
        name = each.get("name", "")
        if name == "model_run":
            starts.append(each["ts"])
        elif each.get("cat") == "Node" and name.endswith("_kernel_time"):
            facts = each.get("args", {})
            key = (name[: -len("_kernel_time")], facts.get("op_name", ""), facts.get("provider", ""))
            spans.append((each["ts"], -each["dur"], key))
    starts.sort()
    spans.sort()  # a node comes before those that run inside
    totals, around = {}, []
    for start, minus, key in spans:
        while around and around[-1][0] <= start:
            around.pop()
        run = bisect.bisect_right(starts, start)
        runs = totals.setdefault(key, {})
        runs[run] = runs.get(run, 0) - minus
        if around:
            outer, outer_run = around[-1][1:]
            outer[outer_run] += minus
        around.append((start - minus, runs, run))
    return [[name, op, provider, max(0, min(runs.values())) / 1e3] for (name, op, provider), runs in totals.items()]


def end_with_parent():
    """Let the kernel kill this process when the supervisor ends, for whatever reason."""
    try:
        import ctypes

        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))  # PR_SET_PDEATHSIG
    except (ImportError, OSError, AttributeError):
        pass


def child(role):
    """Run the job on the first line of stdin. Each pause writes a line and waits for one; the result is the last line."""
    end_with_parent()
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
            os._exit(0)  # the supervisor has ended
        return json.loads(line)

    if job["settings"]["cores"] and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, job["settings"]["cores"])
    try:
        result = {"latency": latency_child, "memory": memory_child, "profile": profile_child}[role](job, pause)
    except Failed as failure:
        result = {"failure": [failure.kind, str(failure).strip().split("\n")[0][:LONGEST_DETAIL]]}
    say(result)


# ---------------------------------------------------------------- the supervisor


class Child:
    """A measuring process that is started ahead and waits for its model."""

    @staticmethod
    def beat(received=None):
        """Tells the client that the supervisor is alive. Called while a child is waited for, and while bytes arrive, with
        their number so far."""

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
            pass  # the child has died; hear() reports how

    def hear(self, limit_s):
        """Its next message. Raises Failed when it reports a failure, dies or does not answer in time."""
        deadline = time.monotonic() + limit_s
        poll = select.poll()
        poll.register(self.process.stdout, select.POLLIN)
        poll.register(sys.stdin, 0)  # reports only a hang-up: the client has gone
        while b"\n" not in self.buffer:
            left = deadline - time.monotonic()
            events = dict(poll.poll(1e3 * max(0.0, min(left, BEAT_S))))
            if sys.stdin.fileno() in events:
                raise EOFError
            if not events and left <= BEAT_S:
                raise Failed("timeout", "no answer after %g s" % limit_s)
            if not events:
                Child.beat()
                continue
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
        """How the child ended, as a `Failed` of a known kind."""
        try:
            status = self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.kill()
            return Failed("crashed", "it closed its output but did not end")
        self.errors.seek(0)
        last = self.errors.read().decode(errors="replace").strip().split("\n")[-1][:LONGEST_DETAIL]
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


def inputs_of(request):
    """The inputs of a request to measure, also of an older version's, which has one."""
    if "inputs" in request:
        return [{key: each[key] for key in ("name", "dtype", "shape")} for each in request["inputs"]]
    return [{"name": request["input"], "dtype": "float32", "shape": request["shape"]}]


class Supervisor:
    def __init__(self, folder):
        self.folder = folder
        self.bases = {}
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
            raise Failed("run-error", "the bytes do not match their SHA-256")
        os.rename(unnamed, self.path(name))
        return {}

    def receive(self, path, stream, size, also=lambda data: None):
        """Write the stream directly to a file, to keep this process small. All `size` bytes are read even if writing fails."""
        problem = None
        try:
            file = open(path, "wb")
        except OSError as error:
            file, problem = None, error
        for data in arriving(stream, size):
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

    def base(self, name, tensors, stream, size):
        self.put(name, stream, size)
        self.bases[name] = tensors
        return {}

    def make(self, name, slices, stream, size):
        self.assemble(self.path(name), slices, b"".join(arriving(stream, size)))
        return {}

    def assemble(self, path, slices, blob):
        import mmap

        if slices["base"] not in self.bases:
            raise Failed("run-error", "no such base: %r" % slices["base"])
        try:
            with open(self.path(slices["base"]), "rb") as file:
                # mapped for each file, to keep this process small; unmapped when the last array that uses it is freed
                base = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            assemble(path, slices, blob, base, self.bases[slices["base"]])
        except OSError as problem:
            if os.path.exists(path):
                os.unlink(path)
            raise Failed("not-kept", problem.strerror) from None

    def model(self, request, stream, size):
        """Write the model of the request to a file, and return its path."""
        path = os.path.join(self.folder, "model.onnx")
        if request["slices"]:
            self.assemble(path, request["slices"], b"".join(arriving(stream, size)))
        else:
            self.receive(path, stream, size)
        return path

    def profile(self, request, stream, size):
        model = self.model(request, stream, size)
        self.stop()  # no other process may run meanwhile
        job = {"inputs": self.placed(inputs_of(request)), "settings": request["settings"], "folder": self.folder}
        child = Child("profile", job, self.folder)
        self.finished = [("profile", child)]
        child.wait_until_ready()
        child.send({"model": model, "answer": 0, "runs": request["runs"]})
        return child.hear(request["settings"]["timeout_s"])

    def placed(self, inputs):
        """The inputs with the paths of their files."""
        return [dict(each, path=self.path(each["name"])) for each in inputs]

    def measure(self, request, stream, size):
        model = self.model(request, stream, size)
        self.start_ahead(request)
        if any(each.process.poll() is not None for _, each in self.waiting):
            self.stop()  # one died while it waited, so this model is not the cause
            self.start_ahead(request)
        memory = [each for role, each in self.waiting if role == "memory"]
        latency = [each for role, each in self.waiting if role == "latency"]
        self.finished, self.waiting, self.key = self.waiting, [], None
        limit_s = request["settings"]["timeout_s"]
        order = {"model": model, "answer": request["answer"], "seed": request["seed"]}
        for each in memory + latency:
            each.wait_until_ready()  # no process may be starting while another one is timed
        result = {"processes": [], "memory": None, "before": state()}
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
        result["after"] = state()
        return result

    def start_ahead(self, request):
        """Start the processes for such a request. Waiting processes for a different request are ended."""
        key = {name: request[name] for name in ("reference", "processes", "memory", "settings")}
        key["inputs"] = inputs_of(request)
        if key != self.key:
            self.stop()
            job = {
                "reference": self.path(key["reference"]) if key["reference"] else None,
                "inputs": self.placed(key["inputs"]),
                "settings": key["settings"],
            }
            roles = ["memory"] * key["memory"] + ["latency"] * key["processes"]
            self.waiting = [(role, Child(role, job, self.folder)) for role in roles]
            self.key = key

    def clear(self):
        """End the processes of the last measurement. This is done after the answer, because it takes a while."""
        for _, each in self.finished:
            each.kill()
        self.finished = []

    def stop(self):
        self.clear()
        for _, each in self.waiting:
            each.kill()
        self.waiting, self.key = [], None


def cache_folder():
    return os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache"), "compress-probe")


def open_regular(path, flags=os.O_RDONLY):
    """Open a regular file. A pipe, a device or a link in its place is refused, without blocking."""
    handle = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a regular file", path)
    return handle


def claim(client):
    """Lock this device for one client, because simultaneous measurements would disturb each other. If a lost connection left
    an earlier worker of the same client behind, that worker is ended. Returns the lock, which must stay open."""
    try:
        os.makedirs(cache_folder(), exist_ok=True)
        path = os.path.join(cache_folder(), "lock")
        lock = os.fdopen(open_regular(path, os.O_RDWR | os.O_CREAT | os.O_APPEND), "r+")
    except OSError:
        return None  # there is no place for a lock: measure without one
    deadline = time.monotonic() + 20
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError:
            lock.seek(0)
            holder, _, pid = lock.read().strip().partition(" ")
        if holder != client or not pid.isdigit() or time.monotonic() > deadline:
            raise Failed("busy", "another job is measuring on this device (process %s)" % (pid or "unknown"))
        try:
            os.kill(int(pid), signal.SIGTERM if time.monotonic() < deadline - 15 else signal.SIGKILL)
        except OSError:
            pass
        time.sleep(0.2)
    lock.truncate(0)
    lock.write("%s %d" % (client, os.getpid()))
    lock.flush()
    return lock


def working_folder():
    """Create and lock a new working folder. Folders of workers that were killed are removed."""
    for left in glob.glob(os.path.join(tempfile.gettempdir(), "compress-probe-*")):
        try:
            if os.lstat(left).st_uid != os.geteuid():
                continue  # another user's
            with os.fdopen(open_regular(os.path.join(left, "held"))) as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if time.time() - os.stat(left).st_mtime > 60:  # a newer folder may not be locked yet
                    shutil.rmtree(left, ignore_errors=True)
        except OSError:
            pass  # it is in use, or another program made it
    folder = tempfile.mkdtemp(prefix="compress-probe-")
    return folder, hold(folder)


def hold(folder):
    """Lock a folder, so that no other worker removes it while the returned file is open."""
    held = open(os.path.join(folder, "held"), "w")
    fcntl.flock(held, fcntl.LOCK_EX)
    return held


def serve(client=None, extra=None):
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # output of libraries must not mix with the messages
    requests = sys.stdin.buffer
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is meant for the client, which then closes stdin
    try:
        lock = claim(client) if client else None  # noqa: F841  (held until the end)
        folder, _held = working_folder()  # held until the end, too
        _extra_held = hold(extra) if extra else None
    except (Failed, OSError) as failure:
        kind = failure.kind if isinstance(failure, Failed) else "not-kept"
        write_message(answers, {"failure": [kind, str(failure)]})
        return
    supervisor = Supervisor(folder)

    def beat(received=None):
        write_message(answers, {"alive": True} if received is None else {"alive": True, "received": received})

    Child.beat = staticmethod(beat)
    if client:
        Child.beat()
    try:
        while True:
            text_size, blob_size = HEADER.unpack(read_exactly(requests, HEADER.size))
            try:
                if text_size > LONGEST_TEXT_BYTES:
                    raise ValueError("%d bytes of text" % text_size)
                request = json.loads(read_exactly(requests, text_size).decode())
                if request["do"] == "hello":
                    answer = hello(folder)
                elif request["do"] == "state":
                    answer = state()
                elif request["do"] == "put":
                    answer = supervisor.put(request["name"], requests, blob_size)
                elif request["do"] == "base":
                    answer = supervisor.base(request["name"], request["tensors"], requests, blob_size)
                elif request["do"] == "make":
                    answer = supervisor.make(request["name"], request["slices"], requests, blob_size)
                elif request["do"] == "measure":
                    answer = supervisor.measure(request, requests, blob_size)
                elif request["do"] == "profile":
                    answer = supervisor.profile(request, requests, blob_size)
                else:
                    answer = {"failure": ["run-error", "unknown request %r" % request["do"]]}
            except Failed as failure:
                answer = {"failure": [failure.kind, str(failure)]}
            except MALFORMED as problem:
                write_message(answers, {"failure": ["run-error", "malformed request: %r" % problem]})
                return  # the next bytes on the pipe may belong to this request
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
        if extra:
            shutil.rmtree(extra, ignore_errors=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(*sys.argv[2:4])
    elif sys.argv[1:] == ["versions"]:
        versions()
    elif sys.argv[1:2] == ["child"] and sys.argv[2:] in (["latency"], ["memory"], ["profile"]):
        child(sys.argv[2])
    else:
        sys.exit("usage: worker.py serve")
